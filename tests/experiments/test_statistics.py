import math

import numpy as np
import pytest
from scipy import stats

from bnkit.experiments.statistics import (
    Mean,
    PairedDifference,
    PairedRatio,
    SuccessRate,
    holm,
    paired_difference,
    paired_ratio,
    rounding_variance,
    seeds_to_win,
    sign_test,
    smallest_step,
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


VALUES = np.random.default_rng(0).normal(0.3, 1, (6, 5))  # (seeds, sweeps)


def test_the_tests_of_a_mean_are_scipys_for_one_sweep_and_for_many():
    many = Mean.of(VALUES)
    expected = stats.ttest_1samp(VALUES, 0)
    assert many.p_different() == pytest.approx(expected.pvalue, rel=1e-9)
    for bound, scipys in zip(many.interval(0.9), expected.confidence_interval(0.9), strict=True):
        assert bound == pytest.approx(scipys, rel=1e-9)
    for sweep, values in enumerate(VALUES.T):
        one = Mean.of(values)
        assert one.p_different() == pytest.approx(many.p_different()[sweep], rel=1e-12)
        assert isinstance(one.p_different(), float)


def test_no_difference_is_two_one_sided_tests_of_scipy():
    margin = 1.5
    below = stats.ttest_1samp(VALUES, margin, alternative="less").pvalue
    above = stats.ttest_1samp(VALUES, -margin, alternative="greater").pvalue
    expected = np.maximum(below, above)
    assert Mean.of(VALUES).p_within(margin) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5]])
def test_under_three_seeds_a_mean_shows_nothing(values):
    found = Mean.of(values)
    assert (found.p_different(), found.p_within(9.0)) == (1, 1)
    assert found.interval() == (-math.inf, math.inf)


def test_equal_values_prove_all_but_a_distance_of_nothing():
    found = Mean.of([0.5] * 4)
    assert (found.p_different(), found.p_within(0.6), found.p_within(0.4)) == (0, 0, 1)
    assert found.p_within(0.5) == Mean.of([0.0] * 4).p_different() / 2 == 0.5


def test_the_deviation_is_at_least_that_of_rounding():
    assert Mean.of([0.5] * 4, rounding=rounding_variance(0.1)).deviation == pytest.approx(
        0.1 / math.sqrt(12)
    )
    assert Mean.of([0.0, 1.0], rounding=0.01).deviation == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("mean", [0.4, 1.0, 3.0])
def test_so_many_seeds_are_just_enough(mean):
    found = Mean(mean, 1.0, 3)
    enough = found.seeds_to_differ(0.05)
    assert Mean(mean, 1.0, enough).p_different() < 0.05
    assert enough == 3 or Mean(mean, 1.0, enough - 1).p_different() > 0.05
    within = found.seeds_to_lie_within(4.0, 0.05)
    assert Mean(mean, 1.0, within).p_within(4.0) < 0.05
    assert within == 3 or Mean(mean, 1.0, within - 1).p_within(4.0) > 0.05


def test_where_no_number_of_seeds_is_enough_there_is_none():
    assert Mean(0.0, 1.0, 3).seeds_to_differ(0.05) is None
    assert Mean(2.0, 1.0, 3).seeds_to_lie_within(1.0, 0.05) is None
    assert Mean(2.0, 0.0, 1).seeds_to_differ(0.05) is None  # one seed has no spread
    assert seeds_to_win(1, 1, 2, 0.05) is seeds_to_win(0, 0, 2, 0.05) is None


@pytest.mark.parametrize(("wins", "losses", "seeds"), [(2, 0, 2), (3, 1, 5), (4, 0, 9)])
def test_the_sign_test_needs_as_many_seeds(wins, losses, seeds):
    enough = seeds_to_win(wins, losses, seeds, 0.01)
    scaled = [count * enough // seeds for count in (wins, losses)]
    assert sign_test(*scaled) <= 0.01


def test_seeds_that_do_not_show_it_are_never_said_to_be_enough():
    # 7 to 1 of eight are not 6 to 0 of seven.
    assert sign_test(7, 1) > 0.05
    assert seeds_to_win(7, 1, 8, 0.05) > 8
    for seeds in range(3, 25):
        for losses in range(seeds):
            for wins in range(losses, seeds - losses + 1):
                enough = seeds_to_win(wins, losses, seeds, 0.05)
                assert (enough is not None and enough <= seeds) == (
                    sign_test(wins, losses) <= 0.05
                ), (wins, losses, seeds)


def test_the_smallest_step_is_between_values_that_differ_by_more_than_rounding():
    assert smallest_step([0.1 + 0.2, 0.3, 0.5]) == pytest.approx(0.2)
    assert smallest_step([1.0]) == smallest_step([]) == smallest_step([0.0, 0.0]) == 0


def holm_one_by_one(p_values, level):
    """As Holm (1979) states it: the smallest first, and none after the first that is not shown."""
    shown, left = [False] * len(p_values), len(p_values)
    for place in sorted(range(len(p_values)), key=p_values.__getitem__):
        if p_values[place] > level / left:
            break
        shown[place], left = True, left - 1
    return shown


def test_holms_levels_show_what_his_procedure_shows():
    drawn = np.random.default_rng(0).uniform(0, 0.06, (500, 4))
    shown = drawn <= holm(drawn, 0.05)
    assert shown.tolist() == [holm_one_by_one(row.tolist(), 0.05) for row in drawn]
    assert 0.2 < shown.mean() < 0.8
