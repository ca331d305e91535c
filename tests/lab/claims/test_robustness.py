"""The verdict on robustness follows from what each network loses in other inks."""

import pytest
import torch

from bnkit.lab.claims.robustness import CLAIM, Robustness, judge, training, written
from bnkit.lab.data import Examples

INKS = (("red", 1.0, 0.0, 0.0), ("blue", 0.0, 0.0, 1.0))
SETTINGS = Robustness(networks=(("mlp", 10, 0.1),), others=INKS)


def trained(plain, batch_norm, adapted, *, seeds=3, network="mlp", own=0.95):
    """Return invented accuracies in other inks; the networks are equal in their own ink."""
    return [
        [
            {"network": network, "ink": ink, "seed": seed, "kind": kind, "accuracy": accuracy}
            for kind, value in (
                ("plain", plain),
                ("batch norm", batch_norm),
                ("adapted", adapted),
            )
            for ink, accuracy in (
                ("black", own),
                ("red", value - 0.1 - seed / 1e5),
                ("blue", value + 0.1),
            )
        ]
        for seed in range(seeds)
    ]


def test_the_toy_run_measures_every_ink_with_and_without_batch_norm_and_adapted():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert {(row["kind"], row["ink"]) for row in evidence.details} == {
        (kind, ink)
        for kind in ("plain", "batch norm", "adapted")
        for ink in ("black", "grey", "red", "green", "blue", "yellow")
    }
    pictures = evidence.figures[2].pictures
    assert max(map(max, pictures[0].values)) == 1  # black ink is all ink
    assert max(map(max, pictures[1].values)) == pytest.approx(0.4)  # grey 0.6


def test_a_smaller_loss_holds():
    evidence = judge(SETTINGS, trained(0.5, 0.7, 0.9))
    assert evidence.verdict == "holds"
    assert "+20.00 (+20.00 to +20.00) points (mlp, batch norm as it is over" in evidence.measured
    assert "+40.00 (+40.00 to +40.00) points (mlp, batch norm adapted over" in evidence.measured


def test_a_better_network_that_loses_as_much_does_not_hold():
    cases = trained(0.5, 0.6, 0.6)
    for row in [row for case in cases for row in case]:
        if row["kind"] != "plain" and row["ink"] == "black":
            row["accuracy"] = 1.05  # ten points above plain in the own ink as in the others
    assert judge(SETTINGS, cases).verdict == "does not hold"


def test_a_loss_that_only_adapting_mends_holds_in_part():
    evidence = judge(SETTINGS, trained(0.7, 0.6, 0.9))
    assert evidence.verdict == "holds in part"
    name = "mlp, batch norm as it is over plain"
    assert f"does not hold for {name}" in evidence.where
    assert f"against its sources, more is lost with {name}" in evidence.where


def test_networks_that_did_not_train_show_nothing():
    assert judge(SETTINGS, trained(0.2, 0.7, 0.9, own=0.7)).verdict == "not shown"


def test_two_seeds_show_nothing():
    assert judge(SETTINGS, trained(0.5, 0.7, 0.9, seeds=2)).verdict == "not shown"


def test_black_ink_is_the_negative_and_white_ink_is_invisible():
    images = torch.rand(2, 1, 3, 3)
    examples = Examples(images, torch.tensor([1, 2]))
    black = written(examples, ("black", 0.0, 0.0, 0.0))
    assert torch.equal(black.inputs, (1 - images).expand(2, 3, 3, 3))
    assert torch.equal(written(examples, ("white", 1.0, 1.0, 1.0)).inputs, torch.ones(2, 3, 3, 3))


def test_a_case_follows_from_its_seed_alone():
    settings = CLAIM.settings("toy")
    case = ("mlp", 5, 0.1, "batch norm", 1)
    torch.manual_seed(5)
    first = training(settings, case)
    torch.manual_seed(6)
    assert training(settings, case) == first
