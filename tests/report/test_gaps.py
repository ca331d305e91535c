"""Runs that are missing are gathered by reason, and each is named."""

from bnkit.report.gaps import gaps
from report.fabricate import comparison, interrupted


def test_gaps_are_gathered_by_reason_and_name_every_run():
    found = gaps(comparison(change=interrupted).unfinished)
    assert {(gap.outcome, len(gap.runs)) for gap in found} == {("not run", 16), ("failed", 2)}
    assert all("seed 2" in run for gap in found if gap.outcome == "not run" for run in gap.runs)
