"""The verdict on the place of batch norm follows, by network, from steps and accuracy."""

import pytest

from bnkit.lab.claims.placement import AFTER, BEFORE, CLAIM, Placements, judge
from invented import invented_run

MLP, VGG = ("mlp", "relu", 100), ("vgg", "relu", 100)
SETTINGS = Placements(networks=(MLP,))


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


def test_fewer_steps_before_hold():
    evidence = judge(SETTINGS, trained(20, 40))
    assert evidence.verdict == "holds"
    assert "2.00 (2.00 to 2.00) times the steps" in evidence.measured


def test_a_higher_end_before_holds():
    ends = ((0.98, 0.99, 0.98), (0.95, 0.96, 0.95))
    evidence = judge(SETTINGS, trained(40, 40, ends=ends))
    assert evidence.verdict == "holds"
    assert "+3.00" in evidence.measured


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
    assert "against its sources, after the activation is better for mlp" in evidence.where


def test_no_difference_does_not_hold_and_is_no_win_for_after():
    evidence = judge(SETTINGS, trained(40, 40))
    assert evidence.verdict == "does not hold"
    assert evidence.where == ""


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


def test_networks_that_disagree_hold_in_part():
    results = [*trained(20, 40), *trained(40, 20, network="vgg")]
    evidence = judge(Placements(networks=(MLP, VGG)), results)
    assert evidence.verdict == "holds in part"
    assert evidence.where.startswith("holds for mlp with relu; does not hold for vgg with relu")
    assert "after the activation is better for vgg with relu" in evidence.where
