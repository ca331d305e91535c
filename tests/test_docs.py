"""README and docs do what they print: their programs run, their outputs are what comes out."""

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bnkit.lab.claiming.checked import Checked
from bnkit.lab.experiments.reproduction import Reproduction

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- run -->\n)?```(python|text|console)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d+(\.\d+)?([eE][-+]?\d+)?")


def blocks(page):
    return [(kind, text, bool(run)) for run, kind, text in BLOCK.findall(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_programs_of_a_page_run_and_print_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names, printed = {"__name__": "__main__"}, None
    for kind, text, run in blocks(page):
        if kind == "python":
            printed = execute(text, names, tmp_path)
        elif kind == "text" and printed:
            assert shape_of(printed) == shape_of(text)
            printed = None
        elif kind == "console" and run:
            for line in text.splitlines():
                command(line.removeprefix("$ "))
    sys.modules.pop("my_code", None)


def execute(text, names, folder):
    """Run a program, or write it where its first line says; return what it printed."""
    title = re.match(r"# (\w+\.py)\n", text)
    if title:
        (folder / title[1]).write_text(text)
        return None
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, "<docs>", "exec"), names)
    return out.getvalue()


def shape_of(text):
    """Return printed text with its numbers left out: other processors round otherwise."""
    lines = [re.sub(r"[ ─]+", " ", NUMBER.sub("#", line)).strip() for line in text.splitlines()]
    return [line for line in lines if line]


def command(line):
    program, *arguments = shlex.split(line)
    assert program == "bnkit"
    done = subprocess.run(
        [sys.executable, "-c", "from bnkit.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_table_of_fine_tuning_is_made_from_the_kept_figures():
    finetuning = runpy.run_path(str(ROOT / "benchmarks" / "finetuning.py"))
    figures = json.loads((ROOT / "benchmarks" / "finetuning.json").read_text())
    assert finetuning["table"](figures) in (ROOT / "docs" / "insert.md").read_text()


def test_the_table_of_published_experiments_is_made_from_the_kept_figures():
    published = runpy.run_path(str(ROOT / "benchmarks" / "published.py"))
    kept = Reproduction.from_json(json.loads((ROOT / "docs" / "published.json").read_text()))
    table = "\n".join(published["lines"](kept.figures))
    assert table in (ROOT / "docs" / "published.md").read_text()


def test_the_readme_counts_the_verdicts_as_they_are():
    kept = Checked.from_json(json.loads((ROOT / "docs" / "claims.json").read_text()))
    found = Counter(claim.verdict for claim in kept.claims)
    words = ("hold", "hold in part", "do not hold", "is not shown")
    verdicts = ("holds", "holds in part", "does not hold", "not shown")
    text = ", ".join(f"{found[v]} {word}" for word, v in zip(words, verdicts, strict=True))
    assert f"{text}." in " ".join((ROOT / "README.md").read_text().split())


def test_the_charts_of_published_experiments_show_the_kept_figures():
    published = runpy.run_path(str(ROOT / "benchmarks" / "published.py"))
    kept = Reproduction.from_json(json.loads((ROOT / "docs" / "published.json").read_text()))
    charts = published["charts"](kept.figures)
    name = "batch norm, validation accuracy"
    differences = {f.experiment: f.difference for f in kept.figures if f.quantity.name == name}
    for dot in charts["differences"].dots:
        assert dot.value == pytest.approx(differences[dot.row])
        assert dot.low <= dot.value <= dot.high
    for dot in charts["successes"].dots:
        assert 0 <= dot.low <= dot.value <= dot.high <= 100
        assert dot.row.startswith("std 5")
    assert charts["differences"].dots
    assert charts["successes"].dots


def test_the_sections_on_the_claims_are_made_from_the_kept_figures():
    claims = runpy.run_path(str(ROOT / "benchmarks" / "claims.py"))
    kept = Checked.from_json(json.loads((ROOT / "docs" / "claims.json").read_text()))
    assert claims["page"](kept) in (ROOT / "docs" / "claims.md").read_text()
