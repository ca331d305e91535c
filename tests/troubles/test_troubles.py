"""Each situation of docs/troubles.md as a program: it ends without an error where it is solved."""

import re
import runpy
import warnings
from pathlib import Path

import pytest

HERE, PAGE = Path(__file__).parent, Path(__file__).parents[2] / "docs" / "troubles.md"
PROGRAMS = {path.stem.partition("_")[0]: path for path in sorted(HERE.glob("[0-9]*.py"))}
ROWS = {f"{int(row[0]):02}": row[1] for row in re.findall(
    r"^\| (\d+) \|.*\| ([^|]+) \| `[^|]*` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
)}  # fmt: skip


@pytest.mark.parametrize("number", PROGRAMS)
def test_a_public_trouble_is_told_right(number, request, monkeypatch):
    monkeypatch.syspath_prepend(HERE)  # as Python does for a program
    if ROWS[number] != "solved":
        request.applymarker(pytest.mark.xfail(reason="the page says what is missing", strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on what these situations are made of
        runpy.run_path(str(PROGRAMS[number]), run_name="__main__")


def test_the_page_has_a_row_for_each_program_and_solves_forty():
    assert sorted(ROWS) == sorted(PROGRAMS) == [f"{number:02}" for number in range(1, 45)]
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in text for path in PROGRAMS.values())
    assert list(ROWS.values()).count("solved") >= 40
