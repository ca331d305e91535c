"""Files appear whole or not at all, and a report that cannot be drawn leaves the old one."""

import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bnkit import write_report
from bnkit.experiments.summary import Comparison
from bnkit.files import strict_json, write_atomically
from bnkit.report import writing
from report.fabricate import comparison

SMALL = comparison([0.1, 3.0], ["relu"], 2)
CHARTS = [f"charts/{name}.{kind}" for name in ("accuracy", "loss", "steps")
          for kind in ("png", "svg")]  # fmt: skip


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "report"  # it does not exist yet
    assert write_report(SMALL, folder) == folder / "report.html"
    return folder


def test_the_files_are_those_that_are_promised_and_no_other(folder):
    assert sorted(contents(folder)) == sorted(["report.html", "results.json", *CHARTS])


def test_pictures_are_pictures(folder):
    for name in CHARTS:
        data = (folder / name).read_bytes()
        if name.endswith("png"):
            assert data.startswith(b"\x89PNG")
        else:
            assert ET.fromstring(data).tag == "{http://www.w3.org/2000/svg}svg"


def test_a_drawing_holds_its_titles_and_both_sides(folder):
    text = (folder / "charts/accuracy.svg").read_text()
    assert all(word in text for word in ("learning rate 3", "plain 1", "BN 9", "training step"))


def test_the_results_are_strict_json_and_come_back_equal(folder):
    def refuse(constant):
        raise AssertionError(constant)

    document = json.loads((folder / "results.json").read_text(), parse_constant=refuse)
    assert Comparison.from_json(document).trials == SMALL.trials


def test_the_page_is_small_enough_to_send(folder):
    assert (folder / "report.html").stat().st_size < 2.5e6


def test_what_is_not_finite_is_null_and_what_is_no_json_is_text():
    document = {"a": [math.nan, math.inf, 1.5], 2: (Path("x"), None, True)}
    assert strict_json(document) == '{"a": [null, null, 1.5], "2": ["x", null, true]}'


def test_a_file_is_replaced_whole(tmp_path):
    write_atomically(tmp_path / "a.txt", b"a long old text")
    write_atomically(tmp_path / "a.txt", b"new")
    assert contents(tmp_path) == {"a.txt": b"new"}


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a.txt", b"old")

    def full(self, data):  # noqa: ARG001  the signature of write_bytes
        self.open("wb").close()
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(tmp_path / "a.txt", b"new")
    monkeypatch.undo()
    assert contents(tmp_path) == {"a.txt": b"old"}


def test_a_chart_that_cannot_be_drawn_leaves_the_old_report_as_it_was(folder, monkeypatch):
    before = contents(folder)
    drawn = []

    def breaks_on_the_last(specification):
        drawn.append(specification)
        if len(drawn) == 3:
            raise RuntimeError("the exporter broke")
        return {".svg": b"new", ".png": b"new"}

    monkeypatch.setattr(writing, "export", breaks_on_the_last)
    with pytest.raises(RuntimeError, match="the exporter broke"):
        write_report(SMALL, folder)
    assert contents(folder) == before


def test_a_comparison_without_trials_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`comparison` holds no trials.*: run some"):
        write_report(replace(SMALL, trials=()), tmp_path)
    assert contents(tmp_path) == {}
