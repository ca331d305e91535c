"""The verdict on initial weights follows from success rates over their standard deviation."""

import pytest

from bnkit.experiments.results import SIDES
from bnkit_claims.claims.initialisation import CLAIM, Initialisation, judge, training
from bnkit_claims.core.claim import ClaimSettings
from bnkit_claims.core.evidence import Part
from bnkit_claims.core.trainings import trial

SETTINGS = Initialisation(deviations=(0.01, 0.1, 1.0), activations=("relu",), learning_rates=(0.1,))
ALL, NONE = (1, 1, 1), (0, 0, 0)
MORE = "more initial weights with relu at rate 0.1"


def trained(plain, batch_norm, *, seeds=5, activation="relu"):
    """Return runs that train (1) or not (0) from each deviation, the same for every seed."""
    return [
        {
            "activation": activation,
            "learning_rate": 0.1,
            "side": side,
            "seed": seed,
            "accuracies": {
                str(d): 0.95 if trains else 0.1
                for d, trains in zip(SETTINGS.deviations, pattern, strict=True)
            },
        }
        for side, pattern in zip(SIDES, (plain, batch_norm), strict=True)
        for seed in range(seeds)
    ]


def test_the_toy_run_counts_every_run():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert len(evidence.details) == 4  # two sides, two deviations
    assert all(0 <= row["trained"] <= row["runs"] == 3 for row in evidence.details)
    assert {line.side for line in evidence.figures[0].lines} == set(SIDES)


def test_more_deviations_but_not_all_hold():
    evidence = judge(SETTINGS, trained((0, 1, 0), (1, 1, 0)))
    assert evidence.verdict == "holds"
    assert evidence.parts == (
        Part(MORE, "+1.0 (+1.0 to +1.0) of 3 standard deviations", True),
        Part(
            "not fixing everything",
            "10/15 runs train with batch norm, 0/5 from a deviation of 1 (relu at rate 0.1)",
            True,
        ),
    )
    assert evidence.headline == (
        "From initial weights of 3 standard deviations 5 of 15 runs train without batch norm "
        "and 10 with it, but 0/5 from a deviation of 1 (relu at rate 0.1)."
    )


def test_all_deviations_are_more_than_the_sources_say():
    # Fifteen of fifteen runs do not exclude a rate under 90%; forty-five of forty-five do.
    few = judge(SETTINGS, trained((0, 1, 0), ALL))
    assert few.parts[1] == Part("not fixing everything", "15/15 runs train with batch norm", None)
    many = judge(SETTINGS, trained((0, 1, 0), ALL, seeds=15))
    assert many.verdict == "holds in part"
    assert many.parts[1] == Part("not fixing everything", "45/45 runs train with batch norm", False)
    assert many.headline == (
        "From initial weights of 3 standard deviations 15 of 45 runs train without batch norm "
        "and 45 with it."
    )


def test_as_many_deviations_without_it_do_not_hold():
    evidence = judge(SETTINGS, trained(ALL, ALL, seeds=15))
    assert evidence.verdict == "does not hold"
    assert "45 of 45 runs train without batch norm and 45 with it." in evidence.headline


def test_fewer_deviations_with_it_do_not_hold_however_little_it_fixes():
    evidence = judge(SETTINGS, trained(ALL, (0, 1, 0)))
    assert evidence.parts[0] == Part(MORE, "-2.0 (-2.0 to -2.0) of 3 standard deviations", False)
    assert [part.shown for part in evidence.parts] == [False, True]
    assert "15 of 15 runs train without batch norm and 5 with it, but 0/5" in evidence.headline


def test_two_seeds_show_nothing():
    evidence = judge(SETTINGS, trained((0, 1, 0), ALL, seeds=2))
    assert evidence.verdict == "not shown"
    assert evidence.parts[0] == Part(MORE, "+2.0 of 3 standard deviations", None)


def test_activations_that_disagree_hold_in_part():
    settings = Initialisation(
        deviations=SETTINGS.deviations, activations=("relu", "sigmoid"), learning_rates=(0.1,)
    )
    results = [*trained(NONE, (1, 1, 0)), *trained(ALL, ALL, activation="sigmoid")]
    evidence = judge(settings, results)
    assert evidence.verdict == "holds in part"
    assert [(part.what, part.shown) for part in evidence.parts] == [
        (MORE, True),
        ("more initial weights with sigmoid at rate 0.1", False),
        ("not fixing everything", True),
    ]


def test_a_run_that_diverged_did_not_train():
    results = trained((0, 1, 0), (1, 1, 0))
    for result in results:
        result["accuracies"] = {d: a if a > 0.5 else None for d, a in result["accuracies"].items()}
    assert judge(SETTINGS, results) == judge(SETTINGS, trained((0, 1, 0), (1, 1, 0)))


@pytest.mark.parametrize("side", SIDES)
def test_the_weights_are_drawn_with_the_deviation(side):
    settings = CLAIM.settings("toy")
    found = training(settings, ("relu", 1.0, side, 0))
    options = {"hidden": (16,), "batch_size": 60, "steps": 40, "evaluate_every": 40}
    same = trial(ClaimSettings(), side, seed=0, learning_rate=1.0, init="normal:0.2", **options)
    assert found["accuracies"]["0.2"] == same.metric
    assert set(found["accuracies"]) == {"0.001", "0.2"}
