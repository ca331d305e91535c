import math

import numpy as np
import pytest
from scipy import stats

from bnkit.experiments.statistics import (
    PairedDifference,
    PairedRatio,
    SuccessRate,
    paired_difference,
    paired_ratio,
    sign_test,
)

STEPS = [(400, 100), (600, 200), (900, 200), (350, 300), (100, 150)]
ACCURACIES = [(0.91, 0.93), (0.88, 0.95), (0.93, 0.92), (0.1, 0.94)]


def t_interval(values):
    """Scipy's 95% interval of the mean."""
    error = stats.sem(values)
    return stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_the_ratio_is_the_geometric_mean_with_scipys_interval_of_the_logarithm(count):
    found = paired_ratio(STEPS[:count])
    ratios = [plain / twin for plain, twin in STEPS[:count]]
    assert found.ratio == pytest.approx(stats.gmean(ratios), rel=1e-12)
    assert (found.low, found.high) == pytest.approx(np.exp(t_interval(np.log(ratios))), rel=1e-12)
    assert found.both == count


def test_exchanged_sides_give_the_inverse_ratio_and_interval():
    found, exchanged = paired_ratio(STEPS), paired_ratio([(b, p) for p, b in STEPS])
    inverse = (1 / found.ratio, 1 / found.high, 1 / found.low)
    assert (exchanged.ratio, exchanged.low, exchanged.high) == pytest.approx(inverse, rel=1e-12)


def test_pairs_that_never_reach_the_target_are_counted_and_leave_the_ratio_alone():
    never = [(None, 10), (None, 20), (30, None), (None, None)]
    found, without = paired_ratio(STEPS + never), paired_ratio(STEPS)
    assert (found.ratio, found.low, found.high) == (without.ratio, without.low, without.high)
    assert (found.both, found.only_batch_norm, found.only_plain, found.neither) == (5, 2, 1, 1)


def test_two_pairs_have_a_ratio_but_no_interval():
    found = paired_ratio(STEPS[:2])
    assert found.ratio == pytest.approx(math.sqrt(12))
    assert (found.low, found.high, found.excludes_one) == (None, None, False)
    assert str(found) == "3.46"


def test_without_a_pair_on_both_sides_there_is_no_ratio():
    assert paired_ratio([(None, 10)]) == PairedRatio(None, None, None, 0, 1, 0, 0)
    assert paired_ratio([]) == PairedRatio(None, None, None, 0, 0, 0, 0)
    assert str(paired_ratio([])) == "no pair in which both reach the target"


@pytest.mark.parametrize(
    ("low", "high", "excludes"),
    [(1.1, 2.0, True), (0.2, 0.9, True), (0.9, 1.1, False), (1.0, 2.0, False), (0.5, 1.0, False)],
)
def test_an_interval_excludes_one_only_where_it_lies_wholly_on_one_side(low, high, excludes):
    assert PairedRatio(1.2, low, high, 3, 0, 0, 0).excludes_one is excludes


@pytest.mark.parametrize("count", [3, 4])
def test_the_difference_is_batch_norm_minus_plain_with_scipys_interval(count):
    found = paired_difference(ACCURACIES[:count])
    differences = [twin - plain for plain, twin in ACCURACIES[:count]]
    assert found.difference == pytest.approx(np.mean(differences), rel=1e-12)
    assert (found.low, found.high) == pytest.approx(t_interval(differences), rel=1e-12)
    assert found.pairs == count


def test_equal_differences_have_an_interval_of_no_width():
    found = paired_difference([(0.0, 0.1)] * 4)  # 0.1 is not a float32
    assert (found.difference, found.low, found.high) == (0.1, 0.1, 0.1)
    assert found.excludes_zero


def test_under_three_pairs_a_difference_has_no_interval():
    assert paired_difference([(0.5, 0.75)] * 2) == PairedDifference(0.25, None, None, 2)
    assert paired_difference([]) == PairedDifference(None, None, None, 0)
    assert not paired_difference([(0.5, 0.75)] * 2).excludes_zero


@pytest.mark.parametrize(
    ("low", "high", "excludes"),
    [(0.01, 0.2, True), (-0.2, -0.01, True), (-0.01, 0.01, False), (0.0, 0.2, False)],
)
def test_an_interval_excludes_zero_only_where_it_lies_wholly_on_one_side(low, high, excludes):
    assert PairedDifference(0.1, low, high, 3).excludes_zero is excludes


@pytest.mark.parametrize("wins", range(8))
@pytest.mark.parametrize("losses", range(8))
def test_the_sign_test_counts_the_outcomes_that_are_as_rare(wins, losses):
    both, rarer = wins + losses, min(wins, losses)
    as_rare = 2 * sum(math.comb(both, k) for k in range(rarer + 1))
    assert sign_test(wins, losses) == pytest.approx(min(1.0, as_rare / 2**both), rel=1e-12)


def test_the_sign_test_takes_more_pairs_than_a_float_has_powers_of_two():
    as_rare = 2 * sum(math.comb(2100, k) for k in range(1031))
    assert sign_test(1030, 1070) == pytest.approx(as_rare / 2**2100, rel=1e-9)
    assert sign_test(3000, 0) == 0


@pytest.mark.parametrize(
    ("successes", "runs"), [(0, 1), (1, 1), (0, 3), (2, 3), (3, 3), (7, 10), (999, 1000)]
)
def test_the_bounds_of_a_rate_are_those_at_which_it_is_two_deviations_away(successes, runs):
    # Wilson 1927, equation 4: (rate - p)² = z² p (1 - p) / n, solved for p.
    z, n, rate = stats.norm.ppf(0.975), runs, successes / runs
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = SuccessRate(successes, runs).interval
    assert (low, high) == pytest.approx((centre - reach, centre + reach), abs=1e-12)
    assert 0 <= low <= rate <= high <= 1


def test_without_runs_every_rate_is_possible():
    assert SuccessRate(0, 0).interval == (0.0, 1.0)
    assert str(SuccessRate(0, 0)) == "0/0"


def test_a_difference_is_shown_in_another_unit_and_turned_round():
    found = PairedDifference(0.5, 0.25, 1.0, pairs=3)
    assert found.times(100) == PairedDifference(50.0, 25.0, 100.0, pairs=3)
    assert f"{found.times(-1):+.1f}" == "-0.5 (-1.0 to -0.2)"


def test_too_few_pairs_show_a_difference_without_an_interval_or_none_at_all():
    assert format(PairedDifference(0.5, None, None, pairs=2).times(-1), ".1f") == "-0.5"
    assert format(PairedDifference(None, None, None, pairs=0).times(-1), ".1f") == "unknown"
