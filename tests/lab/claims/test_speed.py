"""The verdict on speed follows from ratios of steps, and of seconds with the price of a step."""

import pytest

from bnkit.lab.claims.speed import CLAIM, Speed, judge, seconds_per_step
from bnkit.lab.records import SIDES
from invented import invented_run

SETTINGS = Speed(seeds=3, activations=("relu",), steps=1000, evaluate_every=10)


def trained(plain, batch_norm, seeds=3):
    reached = {"plain": plain, "batch norm": batch_norm}
    return [
        {"activation": "relu", "side": side, "seed": seed, "runs": {"0.1": run}}
        for side in SIDES
        for seed in range(seeds)
        for run in [invented_run(reached=reached[side], length=1000)]
    ]


def timed(slowdown=1.5, seeds=3):
    seconds = {"plain": 0.001, "batch norm": 0.001 * slowdown}
    return [{"activation": "relu", "seed": seed, "seconds": seconds} for seed in range(seeds)]


def test_the_toy_run_measures_steps_and_seconds():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert [figure.kind for figure in evidence.figures] == ["lines", "dots"]
    assert len(evidence.details) == 6  # two sides, three seeds
    assert "a step with batch norm takes" in evidence.measured
    for line in evidence.figures[0].lines:
        assert line.y[-1] > 50  # percent: the toy network trains on both sides


def test_twenty_times_fewer_steps_hold():
    evidence = judge(SETTINGS, trained(400, 20), timed())
    assert evidence.verdict == "holds"
    assert "20.00" in evidence.measured
    assert "so it pays" in evidence.measured


def test_a_plain_network_that_never_arrives_is_a_lower_bound():
    evidence = judge(SETTINGS, trained(None, 20), timed())
    assert evidence.verdict == "holds"
    assert "at least 50.00" in evidence.measured


def test_four_times_fewer_steps_hold_in_part_and_it_is_said_where():
    evidence = judge(SETTINGS, trained(80, 20), timed())
    assert evidence.verdict == "holds in part"
    assert "does not hold for ten times fewer steps with relu" in evidence.where


def test_fewer_steps_that_cost_more_do_not_pay():
    evidence = judge(SETTINGS, trained(80, 40), timed(slowdown=3))
    assert "does not hold for ten times fewer steps with relu, less time" in evidence.where
    assert "it does not pay" in evidence.measured


def test_as_many_steps_do_not_hold():
    assert judge(SETTINGS, trained(80, 80), timed()).verdict == "does not hold"


def test_a_batch_norm_network_that_never_arrives_speaks_against_it():
    assert judge(SETTINGS, trained(80, None), timed()).verdict == "does not hold"


@pytest.mark.parametrize(("plain", "batch_norm", "seeds"), [(None, None, 3), (400, 20, 2)])
def test_runs_that_cannot_tell_show_nothing(plain, batch_norm, seeds):
    found = judge(SETTINGS, trained(plain, batch_norm, seeds), timed(seeds=seeds))
    assert found.verdict == "not shown"


def test_a_lower_bound_under_ten_leaves_open_whether_it_is_ten_times():
    assert "is not shown for ten times" in judge(SETTINGS, trained(None, 200), timed()).where


def test_the_same_rate_is_the_best_of_the_plain_network():
    results = trained(400, 20)
    for result in results:
        # At 1.0 batch norm is quicker still, and the plain network never arrives.
        reached = 10 if result["side"] == "batch norm" else None
        result["runs"]["1.0"] = invented_run(reached=reached, length=1000)
    measured = judge(SETTINGS, results, timed()).measured
    assert "40.00 (40.00 to 40.00) times the steps" in measured
    assert "20.00 (20.00 to 20.00) times at the plain network's" in measured


def test_a_step_of_each_side_takes_some_seconds():
    found = seconds_per_step(CLAIM.settings("toy"), ("relu", 0))
    assert all(0 < found["seconds"][side] < 1 for side in SIDES)
