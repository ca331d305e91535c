"""The verdict on the end follows from the lead in test accuracy, not from that along the way."""

import pytest

from bnkit.experiments.results import SIDES
from bnkit_claims.claims.final_accuracy import CLAIM, FinalAccuracy, judge
from bnkit_claims.core.evidence import Beside, Part
from invented import invented_run

SETTINGS = FinalAccuracy(steps=100, evaluate_every=10)


def results(plain, batch_norm, activation="relu", reached=(60, 10)):
    """Return runs that end at these test accuracies, pair by pair; plain gets there late."""
    return [
        {"activation": activation, "side": side, "seed": seed, "runs": {"0.1": run}}
        for side, accuracies, step in zip(SIDES, (plain, batch_norm), reached, strict=True)
        for seed, accuracy in enumerate(accuracies)
        for run in [invented_run(reached=step, accuracy=accuracy)]
    ]


def test_the_toy_run_measures_the_lead_along_and_at_the_end():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert [figure.kind for figure in evidence.figures] == ["lines", "dots"]
    assert len(evidence.details) == 3
    for dot in evidence.figures[1].dots:
        assert 50 < dot.low <= dot.value <= dot.high <= 100  # the toy trains on both sides


def test_a_lead_that_stays_holds():
    evidence = judge(SETTINGS, results([0.95, 0.96, 0.95], [0.98, 0.99, 0.98]))
    assert evidence.verdict == "holds"
    assert evidence.parts == (
        Part("a better end with relu", "+3.00 (+3.00 to +3.00) points", True),
    )
    assert evidence.headline == (
        "Trained to its end, the network with batch norm is 3.0 points more accurate with relu."
    )


def test_a_lead_that_is_caught_up_does_not_hold_however_large_it_was():
    evidence = judge(SETTINGS, results([0.98, 0.97, 0.98], [0.98, 0.97, 0.98]))
    assert evidence.verdict == "does not hold"
    assert Beside("lead along training with relu", "up to 88.0 points") in evidence.beside


def test_a_worse_end_does_not_hold():
    found = judge(SETTINGS, results([0.98, 0.97, 0.98], [0.95, 0.94, 0.95]))
    assert found.verdict == "does not hold"
    assert found.headline.endswith("batch norm is 3.0 points less accurate with relu.")


@pytest.mark.parametrize(
    ("plain", "batch_norm"),
    [([0.95, 0.96, 0.97], [0.98, 0.95, 0.99]), ([0.9, 0.9], [0.98, 0.98])],
    ids=["seeds that disagree", "two seeds"],
)
def test_runs_that_cannot_tell_show_nothing(plain, batch_norm):
    assert judge(SETTINGS, results(plain, batch_norm)).verdict == "not shown"


def test_activations_that_disagree_hold_in_part():
    settings = FinalAccuracy(activations=("relu", "tanh"), steps=100, evaluate_every=10)
    mixed = [
        *results([0.95, 0.96, 0.95], [0.98, 0.99, 0.98], "relu"),
        *results([0.98, 0.98, 0.98], [0.98, 0.98, 0.98], "tanh"),
    ]
    evidence = judge(settings, mixed)
    assert evidence.verdict == "holds in part"
    assert [part.shown for part in evidence.parts] == [True, False]


def test_what_the_last_quarter_added_is_told():
    # Of ten evaluations the last three come after the first 70%; plain arrives with the ninth.
    evidence = judge(SETTINGS, results([0.9] * 3, [0.9] * 3, reached=(90, 10)))
    late = "+80.0 points plain, +0.0 with batch norm"
    assert Beside("what the last quarter added with relu", late) in evidence.beside
