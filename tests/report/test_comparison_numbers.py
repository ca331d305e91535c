"""Numbers are given for both sides, and a dash where there is none."""

import re
from dataclasses import replace

from bnkit.report.comparison_numbers import METHODS, costs, key_numbers, missing_runs, two_modes
from report.fabricate import comparison, in_both_modes, interrupted, never_run, three_sides

SMALL = comparison([0.1, 3.0], ["relu"], 3)


def key_number(name, found=SMALL):
    (match,) = [each for each in key_numbers(found) if each.name == name]
    return match


def test_key_numbers_give_both_sides():
    assert key_number("Runs that train").values == {"plain": "3/6", "batch norm": "6/6"}
    assert key_number("Largest learning rate").values == {"plain": "0.1", "batch norm": "3"}


def test_key_numbers_of_several_sides_have_one_of_each_and_say_nothing_of_two():
    found = three_sides(comparison([0.1, 3.0], ["relu"], 3))
    for each in key_numbers(found):
        assert [*each.values] == ["plain", "batch norm", "group norm"]
        assert "times as" not in each.note
    assert key_number("Runs that train", found).values["group norm"] == "6/6"


def test_the_largest_learning_rate_is_one_figure_that_of_the_best_activation():
    found = key_number("Largest learning rate", comparison())
    assert found.values == {"plain": "3", "batch norm": "3"}
    assert "with its best activation" in found.note
    assert "activation" not in key_number("Largest learning rate").note
    assert (
        key_number("Largest learning rate", comparison(change=never_run)).values["plain"] == "none"
    )


def test_the_price_is_that_of_the_pairs_and_not_of_two_medians():
    found = key_number("Time per step")
    assert re.fullmatch(r"0\.6\d ms", found.values["plain"])
    assert found.values["batch norm"] == f"{SMALL.slowdown:.3g} ×"
    assert found.note.startswith("plain in milliseconds, and multiples of it: the median")


def test_a_machine_that_was_slow_for_a_while_does_not_hide_the_price():
    lasts = {"plain": (0.12, 0.12, 0.07), "batch norm": (0.1296, 0.06, 0.0756)}  # by the seed

    def by_the_hour(trial):
        return replace(trial, seconds=trial.steps * lasts[trial.side][trial.seed])

    found = comparison([0.1, 3.0], ["relu"], 3, change=by_the_hour)
    expected = {"plain": "120 ms", "batch norm": "1.08 ×"}  # the medians are 120 and 76 ms
    assert key_number("Time per step", found).values == expected
    assert {cost.side: cost.time for cost in costs(found)} == expected


def test_of_several_sides_each_has_its_price():
    found = three_sides(comparison([0.1, 3.0], ["relu"], 3))
    values = key_number("Time per step", found).values
    assert values["batch norm"] == f"{found.slowdown_of('batch norm'):.3g} ×"
    assert values["group norm"] == f"{found.slowdown_of('group norm'):.3g} ×"


def test_key_numbers_of_nothing_are_dashes():
    empty = comparison(change=never_run)
    assert key_number("Test accuracy", empty).values["plain"] == "–"
    assert key_number("Steps to the target", empty).values["batch norm"] == "–"
    assert {*key_number("Time per step", empty).values.values()} == {"–"}


def test_costs_state_what_batch_norm_adds():
    plain, batch_norm = costs(comparison([0.1, 3.0], ["relu"], 3))
    assert (plain.parameters, plain.buffers) == ("27,710", "0")
    assert (batch_norm.parameters, batch_norm.buffers) == ("28,310", "603")
    assert plain.time.endswith(" ms")
    assert float(batch_norm.time.removesuffix(" ×")) > 1


def test_parameters_that_differ_between_activations_are_a_range():
    def larger_with_prelu(trial):
        return replace(trial, parameters=trial.parameters + (trial.activation == "prelu"))

    plain, _ = costs(comparison([0.1], ["relu", "prelu"], 1, change=larger_with_prelu))
    assert plain.parameters == "27,710 to 27,711"


def test_what_was_never_measured_is_a_dash():
    plain, _ = costs(comparison(change=never_run))
    assert plain.time == "–"


def test_each_criterion_says_how_it_is_tested():
    assert [finding.criterion for finding in SMALL.verdict.findings] == [*METHODS]


def test_both_modes_of_batch_norm_are_compared_and_a_plain_side_without_a_gap_left_out():
    rows = two_modes(comparison([0.1], ["relu"], 3, change=in_both_modes))
    assert [row.side for row in rows] == ["batch norm"]
    assert rows[0].widest > rows[0].batch - rows[0].running >= 0
    assert two_modes(comparison([0.1], ["relu"], 3)) == ()


def test_missing_runs_are_gathered_by_reason_and_each_is_named():
    found = missing_runs(comparison(change=interrupted).unfinished)
    assert {(outcome, len(runs)) for (outcome, _), runs in found.items()} == {
        ("not run", 16),
        ("failed", 2),
    }
    not_run = next(runs for (outcome, _), runs in found.items() if outcome == "not run")
    assert all("seed 2" in run for run in not_run)
