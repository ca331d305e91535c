"""`bnkit explain` says of each rule what people need, and helps those who mistype one."""

import json

from bnkit.cli import explaining
from bnkit.diagnosis.explanation import explanation_of
from bnkit.diagnosis.rules.table import RULES
from cli.commands import run


def test_a_rule_is_explained_with_all_of_its_sections():
    code, stdout, stderr = run("explain stale-statistics")
    found = explanation_of(next(rule for rule in RULES if rule.slug == "stale-statistics"))
    assert (code, stderr) == (0, "")
    for part in (found.trouble, found.measured, found.severity, found.fix, found.example):
        assert part in stdout
    assert "never-updated" in stdout  # a cause of it
    assert stdout.endswith("In the docs: docs/rules.md#stale-statistics\n")


def test_without_a_rule_all_are_listed_a_line_each():
    code, stdout, _ = run("explain")
    assert code == 0
    assert [rule.slug for rule in RULES if f" {rule.slug} " not in stdout] == []
    words = " ".join(stdout.split())
    assert [rule.summary for rule in RULES if rule.summary not in words] == []
    assert all(kind in words for kind in ("structure", "state", "training", "export"))


def test_an_unknown_rule_is_answered_by_near_ones_and_the_list():
    code, stdout, stderr = run("explain stale-statistik")
    assert (code, stdout) == (2, "")
    assert "unknown rule 'stale-statistik': did you mean 'stale-statistics'" in stderr
    assert all(rule.slug in stderr for rule in RULES)


def test_a_rule_is_found_by_how_it_alone_begins():
    assert run("explain stale")[1] == run("explain stale-statistics")[1]
    assert run("explain no")[0] == 2  # noisy-statistics and non-finite


def test_json_holds_one_rule_or_the_list():
    found = json.loads(run("explain train-eval-gap --json")[1])
    assert found["rule"] == "train-eval-gap"
    assert "stale-statistics" in found["follows"]
    assert found["example"].startswith("```diff")
    listed = json.loads(run("explain --json")[1])["rules"]
    assert [each["rule"] for each in listed] == [rule.slug for rule in RULES]
    assert {each["kind"] for each in listed} == {"structure", "state", "training", "export"}


def test_a_terminal_gets_the_same_words_without_the_marks(capsys):
    found = explanation_of(RULES[0])
    explaining._show(found)
    shown = capsys.readouterr().out
    assert "**" not in shown
    assert "How it is measured." in shown
    assert "bias=False" in shown
