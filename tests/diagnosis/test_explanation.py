"""Every rule is explained, in one place, with the thresholds that it uses."""

import re
from dataclasses import fields
from operator import attrgetter
from pathlib import Path

import pytest

import bnkit
from bnkit.diagnosis.explanation import SECTIONS, explanation_of, manual
from bnkit.diagnosis.rules import numbers, optimizing, parameters, reading, staleness
from bnkit.diagnosis.rules.table import FOLDER, RULES

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {rule.slug: explanation_of(rule) for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.slug)
def test_a_rule_has_every_section(rule):
    found = PAGES[rule.slug]
    assert [
        f.name for f in fields(found) if f.name != "follows" and not getattr(found, f.name)
    ] == []
    assert len(found.trouble.split()) > 20
    assert found.severity.split(".")[0].split()[0] in ("An", "A", "Information", "By", "In",
                                                       "Information:", "Information,")  # fmt: skip
    titles = [line[3:].lower() for line in (FOLDER / f"{rule.slug}.md").read_text().splitlines()
              if line.startswith("## ")]  # fmt: skip
    assert titles == list(SECTIONS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.slug)
def test_the_example_shows_a_line_before_and_after(rule):
    lines = PAGES[rule.slug].example.splitlines()
    assert (lines[0], lines[-1]) == ("```diff", "```")
    assert {line[:2] for line in lines[1:-1]} >= {"+ "}
    assert max(map(len, lines)) <= 100


def test_no_page_is_of_a_rule_that_is_gone():
    assert {path.stem for path in FOLDER.glob("*.md")} == set(PAGES)


@pytest.mark.parametrize(
    ("slug", "threshold"),
    [
        ("dead-channels", parameters.DEAD),
        ("exploding-gamma", parameters.EXPLODED),
        ("stale-statistics", staleness.CHANGE),
        ("stale-statistics", staleness.ERRORS),
        ("train-eval-gap", staleness.CHANGE),
        ("warming-up", staleness.SHARE),
        ("noisy-statistics", reading.QUARTER),
        ("noisy-statistics", reading.HALF),
        ("small-micro-batch", reading.QUARTER),
        ("unsynchronised", reading.QUARTER),
        ("sync-without-group", reading.QUARTER),
        ("weight-decay", optimizing._FAST),
        ("momentum-convention", numbers._OTHER_CONVENTION),
        ("large-eps", numbers._EPS_OF_NO_FRAMEWORK),
        ("large-eps", numbers._EPS_OF_KERAS),
    ],
)
def test_a_page_states_the_threshold_that_the_rule_uses(slug, threshold):
    page = PAGES[slug]
    assert f"{threshold:g}" in f"{page.measured} {page.severity}"


def test_the_docs_are_made_from_the_explanations():
    anew = (
        "make it anew: python -c 'from bnkit.diagnosis.explanation import manual; "
        'print(manual(), end="")\' > docs/rules.md'
    )
    assert (DOCS / "rules.md").read_text(encoding="utf-8") == manual(), anew


@pytest.mark.parametrize("suffix", ["*.md", "*.py"])
def test_what_people_are_told_to_call_is_there(suffix):
    diagnosis = FOLDER.parent
    text = "\n".join(path.read_text() for path in diagnosis.rglob(suffix))
    named = set(re.findall(r"bnkit\.([a-z_.]+)\(", text))
    assert "recalibrate" in named
    for name in named:
        assert callable(attrgetter(name)(bnkit)), name
