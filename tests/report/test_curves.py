"""Curves over seeds are medians and ranges in which a diverged run still counts."""

import math

from hypothesis import given
from hypothesis import strategies as st

from bnkit.experiments.results import Curve, TrialResult
from bnkit.report.curves import Divergence, Spread, curves_of


def run(seed, values, *, outcome="finished", side="plain"):
    steps = tuple(range(10, 10 * len(values) + 1, 10))
    curve = Curve(steps, tuple(values), tuple(v or 0.0 for v in values))
    return TrialResult(f"{side}{seed}", side, 0.1, "relu", seed, outcome, curve=curve)


def losses(*plain):
    return curves_of({"plain": plain, "batch norm": ()}, lambda curve: curve.loss)


def test_each_step_has_the_median_and_the_range_of_the_seeds():
    found = losses(run(0, [3.0, 1.0]), run(1, [5.0, 2.0]), run(2, [4.0, 9.0]))
    assert found.spreads["plain"] == (Spread(10, 4.0, 3.0, 5.0), Spread(20, 2.0, 1.0, 9.0))


def test_a_diverged_run_counts_with_its_last_finite_value_to_the_end():
    # Its loss at step 20 was not finite: 7 counts from there on.
    found = losses(run(0, [3.0, 2.0, 1.0]), run(1, [7.0, None], outcome="diverged"))
    assert [s.highest for s in found.spreads["plain"]] == [7.0, 7.0, 7.0]
    assert [s.median for s in found.spreads["plain"]] == [5.0, 4.5, 4.0]


def test_a_divergence_is_marked_at_the_last_step_of_its_run():
    found = losses(run(0, [3.0, 2.0, 1.0]), run(1, [7.0, None], outcome="diverged"))
    assert found.divergences == (Divergence("plain", 1, 20, 7.0),)


def test_a_run_that_failed_on_its_way_ends_where_it_ends():
    found = losses(run(0, [3.0, 2.0, 1.0]), run(1, [7.0, 6.0], outcome="failed"))
    assert [s.highest for s in found.spreads["plain"]] == [7.0, 6.0, 1.0]
    assert found.divergences == ()


def test_losses_that_are_none_or_not_finite_are_gaps():
    found = losses(run(0, [3.0, None, math.inf, math.nan, 1.0]))
    assert [s.step for s in found.spreads["plain"]] == [10, 50]


def test_a_side_without_runs_has_no_end():
    found = losses(run(0, [3.0]))
    assert found.end("batch norm") is None
    assert found.end("plain") == Spread(10, 3.0, 3.0, 3.0)


def test_a_run_that_diverged_before_any_finite_value_is_neither_drawn_nor_marked():
    found = losses(run(0, [None], outcome="diverged"))
    assert found.everything == ()
    assert found.divergences == ()


@given(st.lists(st.lists(st.floats(0.001, 1e3), min_size=1, max_size=5), min_size=1, max_size=5))
def test_the_median_lies_within_the_range(runs):
    outcomes = ["finished", "diverged"]
    trials = [run(n, values, outcome=outcomes[n % 2]) for n, values in enumerate(runs)]
    assert all(s.lowest <= s.median <= s.highest for s in losses(*trials).everything)
