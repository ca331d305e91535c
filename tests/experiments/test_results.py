import json
import math
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from bnkit.experiments.metrics import Metric
from bnkit.experiments.results import SIDES, Curve, TrialResult

CURVE = Curve((50, 100), (2.5, None), (0.25, 0.875), (0.5, 0.75))
TRIAL = TrialResult(
    key="a1b2",
    side="batch norm",
    learning_rate=0.1,
    activation="relu",
    seed=3,
    outcome="diverged",
    reason="the training loss was nan before step 100",
    curve=CURVE,
    metric=0.875,
    test_metric=0.75,
    parameters=12,
    buffers=5,
    steps=100,
    seconds=0.25,
)
NOT_RUN = TrialResult("a1", "plain", 0.1, "relu", 0, "not run")


def test_the_sides_come_plain_first():
    assert SIDES == ("plain", "batch norm")


@pytest.mark.parametrize(("target", "step"), [(0.25, 50), (0.3, 100), (0.875, 100), (0.9, None)])
def test_the_first_step_at_a_target_is_the_first_that_equals_or_exceeds_it(target, step):
    assert CURVE.first_step_at(target) == step


def test_a_target_that_is_lost_again_was_reached():
    assert Curve((1, 2, 3), (0.0,) * 3, (0.2, 0.9, 0.1)).first_step_at(0.5) == 2


def test_a_run_that_diverged_never_reached_the_target():
    finished = replace(TRIAL, outcome="finished")
    assert (finished.steps_to(0.875), finished.steps_to(0.9)) == (100, None)
    assert TRIAL.steps_to(0.25) is None


def test_an_empty_curve_reaches_nothing():
    assert Curve().first_step_at(0.0) is None


def test_a_curve_whose_tuples_differ_in_length_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        Curve((1, 2), (0.0, 0.0), (0.1,)).first_step_at(0.5)


@pytest.mark.parametrize(
    ("outcome", "accuracy", "succeeds"),
    [
        ("finished", 0.9, True),
        ("finished", 0.899, False),
        ("finished", None, False),
        ("diverged", 0.95, False),
        ("failed", None, False),
        ("not run", None, False),
    ],
)
def test_a_run_succeeds_that_finished_at_the_target_or_above(outcome, accuracy, succeeds):
    assert replace(TRIAL, outcome=outcome, metric=accuracy).succeeds(0.9) is succeeds


def test_where_lower_is_better_a_run_succeeds_at_the_target_or_below():
    error = Metric("mse", higher_is_better=False)
    run = replace(TRIAL, outcome="finished", metric=0.25, curve=Curve((1, 2), (), (None, 0.25)))
    assert [run.succeeds(target, error) for target in (0.2, 0.25)] == [False, True]
    assert [run.steps_to(target, error) for target in (0.2, 0.25)] == [None, 2]


def test_the_time_of_a_step_is_in_milliseconds_and_nan_without_steps():
    assert TRIAL.milliseconds_per_step == 2.5
    assert math.isnan(NOT_RUN.milliseconds_per_step)


@pytest.mark.parametrize("trial", [TRIAL, NOT_RUN], ids=["full", "defaults"])
def test_a_record_comes_back_equal_from_json_text(trial):
    text = json.dumps(trial.to_json(), allow_nan=False)
    assert TrialResult.from_json(json.loads(text)) == trial


def test_json_holds_every_field():
    assert set(TRIAL.to_json()) == {field.name for field in fields(TrialResult)}
    assert set(TRIAL.to_json()["curve"]) == {field.name for field in fields(Curve)}


@pytest.mark.parametrize(
    "damage",
    [lambda d: d.pop("key"), lambda d: d.pop("curve"), lambda d: d.update(unknown=1)],
    ids=["no key", "no curve", "an unknown field"],
)
def test_damaged_json_is_refused(damage):
    document = TRIAL.to_json()
    damage(document)
    with pytest.raises((KeyError, TypeError)):
        TrialResult.from_json(document)


def test_records_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TRIAL.seed = 4
