"""The verdict on speed follows from ratios of steps, and of seconds with the price of a step."""

import pytest

from bnkit.experiments.results import SIDES
from bnkit_claims.claims.speed import CLAIM, Speed, judge, seconds_per_step
from bnkit_claims.core.evidence import Beside, Part
from invented import invented_run

SETTINGS = Speed(seeds=3, activations=("relu",), steps=1000, evaluate_every=10)


def trained(plain, batch_norm, seeds=3, first=0, activation="relu"):
    reached = {"plain": plain, "batch norm": batch_norm}
    return [
        {"activation": activation, "side": side, "seed": seed, "runs": {"0.1": run}}
        for side in SIDES
        for seed in range(first, seeds)
        for run in [invented_run(reached=reached[side], length=1000)]
    ]


def timed(slowdown=1.5, seeds=3, activation="relu"):
    seconds = {"plain": 0.001, "batch norm": 0.001 * slowdown}
    return [{"activation": activation, "seed": seed, "seconds": seconds} for seed in range(seeds)]


def shown(evidence):
    return {part.what.removesuffix(" with relu"): part.shown for part in evidence.parts}


def test_the_toy_run_measures_steps_and_seconds():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert [figure.kind for figure in evidence.figures] == ["lines", "dots"]
    assert len(evidence.details) == 6  # two sides, three seeds
    assert [part.what for part in evidence.parts] == [
        "fewer steps with relu",
        "ten times fewer steps with relu",
        "less time with relu",
    ]
    assert evidence.beside[1].what == "time for one step with relu"
    assert evidence.beside[1].figures.endswith("times as long with batch norm")
    for line in evidence.figures[0].lines:
        assert line.y[-1] > 50  # percent: the toy network trains on both sides


def test_twenty_times_fewer_steps_hold():
    evidence = judge(SETTINGS, trained(400, 20), timed())
    assert evidence.verdict == "holds"
    steps = "20.00 (20.00 to 20.00) times as many without batch norm"
    assert evidence.parts == (
        Part("fewer steps with relu", steps, True),
        Part("ten times fewer steps with relu", steps, True),
        Part(
            "less time with relu", "13.33 (13.33 to 13.33) times as long without batch norm", True
        ),
    )
    assert evidence.headline == "To 90% the plain network takes 20 times the steps with relu."


def test_a_plain_network_that_never_arrives_is_a_lower_bound():
    evidence = judge(SETTINGS, trained(None, 20), timed())
    assert evidence.verdict == "holds"
    assert evidence.parts[0].figures == (
        "at least 50.00 (50.00 to 50.00) times as many without batch norm"
    )
    assert evidence.headline == (
        "To 90% the plain network takes at least 50 times the steps with relu."
    )


def test_four_times_fewer_steps_hold_in_part_and_it_is_said_where():
    evidence = judge(SETTINGS, trained(80, 20), timed())
    assert evidence.verdict == "holds in part"
    assert shown(evidence) == {
        "fewer steps": True,
        "ten times fewer steps": False,
        "less time": True,
    }
    assert evidence.headline == "To 90% the plain network takes 4 times the steps with relu."


def test_fewer_steps_that_cost_more_do_not_pay():
    evidence = judge(SETTINGS, trained(80, 40), timed(slowdown=3))
    assert shown(evidence) == {
        "fewer steps": True,
        "ten times fewer steps": False,
        "less time": False,
    }
    assert evidence.parts[2].figures == "0.67 (0.67 to 0.67) times as long without batch norm"
    price = Beside("time for one step with relu", "3.00 times as long with batch norm")
    assert price in evidence.beside


def test_as_many_steps_do_not_hold():
    evidence = judge(SETTINGS, trained(80, 80), timed())
    assert evidence.verdict == "does not hold"
    assert evidence.headline == "To 90% the plain network takes 1 times the steps with relu."


def test_a_batch_norm_network_that_never_arrives_speaks_against_it():
    evidence = judge(SETTINGS, trained(80, None), timed())
    assert evidence.verdict == "does not hold"
    assert evidence.headline == (
        "To 90% the plain network takes at most 0.08 times the steps with relu."
    )


@pytest.mark.parametrize(("plain", "batch_norm", "seeds"), [(None, None, 3), (400, 20, 2)])
def test_runs_that_cannot_tell_show_nothing(plain, batch_norm, seeds):
    found = judge(SETTINGS, trained(plain, batch_norm, seeds), timed(seeds=seeds))
    assert found.verdict == "not shown"


def test_a_lower_bound_under_ten_leaves_open_whether_it_is_ten_times():
    evidence = judge(SETTINGS, trained(None, 200), timed())
    assert shown(evidence) == {
        "fewer steps": True,
        "ten times fewer steps": None,
        "less time": True,
    }


def test_runs_that_never_arrive_on_either_side_are_told():
    evidence = judge(SETTINGS, trained(None, None), timed())
    assert {part.figures for part in evidence.parts} == {
        "neither side gets there from 3 of 3 seeds"
    }
    assert evidence.headline == (
        "To 90% the plain network takes an unknown number of times the steps with relu."
    )


def test_seeds_from_which_neither_side_arrives_are_counted_beside_the_others():
    results = [*trained(80, 20, seeds=4), *trained(None, None, first=4, seeds=5)]
    evidence = judge(SETTINGS, results, timed(seeds=5))
    assert evidence.parts[0].figures == (
        "4.00 (4.00 to 4.00) times as many without batch norm; "
        "neither side gets there from 1 of 5 seeds"
    )


def test_bounds_on_both_sides_leave_the_ratio_unknown():
    results = [*trained(80, None, seeds=1), *trained(None, 20, first=1, seeds=5)]
    evidence = judge(SETTINGS, results, timed(seeds=5))
    assert shown(evidence)["fewer steps"] is None
    assert "an unknown number of times the steps" in evidence.headline


def test_activations_are_told_one_after_another():
    settings = Speed(seeds=3, activations=("sigmoid", "relu"), steps=1000, evaluate_every=10)
    results = [*trained(None, 20, activation="sigmoid"), *trained(80, 20)]
    evidence = judge(settings, results, [*timed(activation="sigmoid"), *timed()])
    assert [part.shown for part in evidence.parts] == [True, True, True, True, False, True]
    assert evidence.headline == (
        "To 90% the plain network takes at least 50 times the steps with sigmoid "
        "and 4 times with relu."
    )


def test_the_same_rate_is_the_best_of_the_plain_network():
    results = trained(400, 20)
    for result in results:
        # At 1.0 batch norm is quicker still, and the plain network never arrives.
        reached = 10 if result["side"] == "batch norm" else None
        result["runs"]["1.0"] = invented_run(reached=reached, length=1000)
    evidence = judge(SETTINGS, results, timed())
    own, same = (f"{n}.00 ({n}.00 to {n}.00) times as many without batch norm" for n in (40, 20))
    assert evidence.parts[0] == Part("fewer steps with relu", own, True)
    assert Beside("steps at plain's best rate with relu", same) in evidence.beside


def test_a_step_of_each_side_takes_some_seconds():
    found = seconds_per_step(CLAIM.settings("toy"), ("relu", 0))
    assert all(0 < found["seconds"][side] < 1 for side in SIDES)


def test_a_best_rate_at_the_edge_of_the_sweep_is_told():
    evidence = judge(SETTINGS, trained(40, 20), timed())
    edge = "the smallest, 0.1, for plain with relu, batch norm with relu"
    assert evidence.notes == (f"A wider sweep might find a better learning rate than {edge}.",)
