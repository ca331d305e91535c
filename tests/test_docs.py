"""README and docs do what they print: their programs run, their outputs are what comes out."""

import json
import runpy
from pathlib import Path

import pytest

from pages import check_page

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_programs_of_a_page_run_and_print_what_it_says(page, tmp_path, monkeypatch):
    check_page(page, tmp_path, monkeypatch)


def test_the_table_of_fine_tuning_is_made_from_the_kept_figures():
    finetuning = runpy.run_path(str(ROOT / "benchmarks" / "finetuning.py"))
    figures = json.loads((ROOT / "benchmarks" / "finetuning.json").read_text())
    assert finetuning["table"](figures) in (ROOT / "docs" / "insert.md").read_text()
