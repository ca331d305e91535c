"""The verdict on the place of batch norm follows, by network, from steps and accuracy."""

import pytest

from bnkit_claims.claims.placement import AFTER, BEFORE, CLAIM, Placements, judge, training
from bnkit_claims.core.evidence import Part
from invented import invented_run

MLP, VGG = ("mlp", "relu", 100), ("vgg", "relu", 100)
RATES = (0.01, 0.1, 1.0)  # the invented runs are at the middle one
SETTINGS = Placements(networks=(MLP,), learning_rates=RATES)


def trained(before, after, *, network="mlp", ends=((0.97,) * 3, (0.97,) * 3)):
    """Return runs that reach the target at these steps, and end at these accuracies by seed."""
    return [
        {"network": f"{network} with relu", "placement": place, "seed": seed, "runs": {"0.1": run}}
        for place, reached, accuracies in zip((BEFORE, AFTER), (before, after), ends, strict=True)
        for seed, accuracy in enumerate(accuracies)
        for run in [invented_run(reached=reached, accuracy=accuracy)]
    ]


def test_the_toy_run_measures_each_network_with_both_placements():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert {(row["network"], row["placement"]) for row in evidence.details} == {
        (network, place)
        for network in ("mlp with relu", "mlp with sigmoid")
        for place in (BEFORE, AFTER)
    }
    lines = evidence.figures[1].lines
    assert all(line.y[-1] > 50 for line in lines)  # percent: every toy trains
    first, second = (line for line in lines if line.panel == "mlp with relu")
    assert first.y != second.y  # two placements are two networks


TRAINEES = {trainee[:2] for size in CLAIM.sizes.values() for trainee in size.networks}


@pytest.mark.parametrize(("network", "activation"), sorted(TRAINEES))
def test_the_networks_of_every_size_take_batch_norm_after_their_activations(network, activation):
    settings = Placements(learning_rates=(0.1,), evaluations=1)
    found = training(settings, (network, activation, 1, AFTER, 0))
    assert found["runs"]["0.1"]["steps"] == [1]


def test_fewer_steps_before_hold():
    evidence = judge(SETTINGS, trained(20, 40))
    assert evidence.verdict == "holds"
    figures = (
        "steps to 90%, after ÷ before: 2.00 (2.00 to 2.00); "
        "final accuracy, before − after: +0.00 (+0.00 to +0.00) points"
    )
    assert evidence.parts == (Part("better before the activation in mlp with relu", figures, True),)
    assert evidence.notes == ()


def test_a_higher_end_before_holds():
    ends = ((0.98, 0.99, 0.98), (0.95, 0.96, 0.95))
    evidence = judge(SETTINGS, trained(40, 40, ends=ends))
    assert evidence.verdict == "holds"
    (part,) = evidence.parts
    assert part.figures.endswith("before − after: +3.00 (+3.00 to +3.00) points")


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        ((40, 20), ((0.97,) * 3, (0.97,) * 3)),
        ((40, 40), ((0.95, 0.96, 0.95), (0.98, 0.99, 0.98))),
    ],
    ids=["fewer steps after", "a higher end after"],
)
def test_after_does_better_and_the_sources_are_contradicted_plainly(steps, ends):
    evidence = judge(SETTINGS, trained(*steps, ends=ends))
    assert evidence.verdict == "does not hold"
    assert [part.shown for part in evidence.parts] == [False]
    (note,) = evidence.notes
    assert note == (
        "Contrary to its sources, Ioffe and Szegedy and Udacity's lesson, after the activation is "
        "better in mlp with relu, as fast.ai says."
    )


def test_no_difference_does_not_hold_and_is_no_win_for_after():
    evidence = judge(SETTINGS, trained(40, 40))
    assert evidence.verdict == "does not hold"
    assert evidence.notes == ()


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        ((20, 40), ((0.95, 0.96, 0.95), (0.98, 0.99, 0.98))),  # quicker before, higher after
        ((40, 40), ((0.95, 0.99, 0.95), (0.98, 0.95, 0.97))),  # equal steps, accuracy open
        ((None, None), ((0.97,) * 3, (0.97,) * 3)),
        ((20, 40), ((0.97,) * 2, (0.97,) * 2)),  # two seeds have no interval
    ],
)
def test_what_cannot_be_told_shows_nothing(steps, ends):
    assert judge(SETTINGS, trained(*steps, ends=ends)).verdict == "not shown"


def test_a_target_that_is_never_reached_is_said_in_words():
    (part,) = judge(SETTINGS, trained(None, None)).parts
    assert "after ÷ before: no pair in which both reach the target;" in part.figures


@pytest.mark.parametrize(
    ("mlp", "vgg", "found"),
    [
        ((20, 40), (20, 40), "before the activation in 2 (mlp with relu, vgg with relu)"),
        (
            (20, 40),
            (40, 20),
            "before the activation in 1 (mlp with relu), after the activation in 1 (vgg with relu)",
        ),
        ((40, 20), (40, 40), "after the activation in 1 (mlp with relu), neither in 1"),
        ((20, 40), (None, None), "before the activation in 1 (mlp with relu), not shown in 1"),
    ],
    ids=["for", "mixed", "against", "unknown"],
)
def test_the_headline_says_which_place_is_better(mlp, vgg, found):
    results = [*trained(*mlp), *trained(*vgg, network="vgg")]
    evidence = judge(Placements(networks=(MLP, VGG), learning_rates=RATES), results)
    assert evidence.headline == f"Of 2 networks, the better place for batch norm is {found}."


def test_networks_that_disagree_hold_in_part():
    results = [*trained(20, 40), *trained(40, 20, network="vgg")]
    evidence = judge(Placements(networks=(MLP, VGG), learning_rates=RATES), results)
    assert evidence.verdict == "holds in part"
    assert [(part.what, part.shown) for part in evidence.parts] == [
        ("better before the activation in mlp with relu", True),
        ("better before the activation in vgg with relu", False),
    ]
    (note,) = evidence.notes
    assert "after the activation is better in vgg with relu" in note


def test_a_best_rate_at_the_edge_of_the_sweep_is_told():
    settings = Placements(networks=(MLP,), learning_rates=(0.1, 1.0))
    assert judge(settings, trained(20, 40)).notes == (
        (
            "A wider sweep might find a better learning rate than the smallest, 0.1, for mlp with "
            "relu (before), mlp with relu (after)."
        ),
    )
