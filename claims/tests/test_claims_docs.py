"""The pages of the claims do what they print, and say what the kept figures say."""

import json
import runpy
from collections import Counter
from pathlib import Path

import pytest

from bnkit_claims.claims.all_claims import CLAIMS
from bnkit_claims.core.checked_claims import Checked
from bnkit_claims.published.reproduction import Reproduction
from pages import check_page

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_programs_of_a_page_run_and_print_what_it_says(page, tmp_path, monkeypatch):
    check_page(page, tmp_path, monkeypatch)


def test_the_table_of_published_experiments_is_made_from_the_kept_figures():
    published = runpy.run_path(str(ROOT / "benchmarks" / "published.py"))
    kept = Reproduction.from_json(json.loads((ROOT / "docs" / "published.json").read_text()))
    table = "\n".join(published["lines"](kept.figures))
    assert table in (ROOT / "docs" / "published.md").read_text()


def test_the_kept_claims_say_what_the_code_says():
    kept = Checked.from_json(json.loads((ROOT / "docs" / "claims.json").read_text()))
    said = [(c.name, c.statement, c.sources, c.measurement, c.criteria) for c in kept.claims]
    code = [(c.name, c.statement, c.sources, c.measurement, c.criteria) for c in CLAIMS]
    assert said == code


def test_the_readme_counts_the_verdicts_as_they_are():
    kept = Checked.from_json(json.loads((ROOT / "docs" / "claims.json").read_text()))
    found = Counter(claim.verdict for claim in kept.claims)
    words = ("hold", "hold in part", "do not hold", "is not shown")
    verdicts = ("holds", "holds in part", "does not hold", "not shown")
    text = ", ".join(f"{found[v]} {word}" for word, v in zip(words, verdicts, strict=True))
    assert f"{text}." in " ".join((ROOT.parent / "README.md").read_text().split())


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
