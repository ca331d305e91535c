"""The verdict on robustness follows from what each network loses in other inks."""

import pytest
import torch

from bnkit.experiments.data import Examples
from bnkit_claims.claims.robustness import CLAIM, Robustness, judge, training, written
from bnkit_claims.core.evidence import Part

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


def spread(value):
    return f"(+{value:.2f} to +{value:.2f})"


def test_a_smaller_loss_holds():
    evidence = judge(SETTINGS, trained(0.5, 0.7, 0.9))
    assert evidence.verdict == "holds"
    assert evidence.parts == (
        Part("mlp keeps more accuracy with batch norm", f"+20.00 {spread(20)} points", True),
        Part(
            "mlp keeps more accuracy with adapted batch norm", f"+40.00 {spread(40)} points", True
        ),
        Part("mlp keeps more accuracy adapted than unadapted", f"+20.00 {spread(20)} points", True),
    )
    assert evidence.notes == ()
    assert evidence.headline == (
        "Batch norm changes the accuracy kept in other inks by +20 points (mlp); adapted to the "
        "ink, by +40 points (mlp)."
    )


def test_a_better_network_that_loses_as_much_does_not_hold():
    cases = trained(0.5, 0.6, 0.6)
    for row in [row for case in cases for row in case]:
        if row["kind"] != "plain" and row["ink"] == "black":
            row["accuracy"] = 1.05  # ten points above plain in the own ink as in the others
    evidence = judge(SETTINGS, cases)
    assert evidence.verdict == "does not hold"
    assert [part.shown for part in evidence.parts] == [False, False, False]
    assert evidence.headline == (
        "Batch norm changes the accuracy kept in other inks by +0.0 points (mlp); adapted to the "
        "ink, by +0.0 points (mlp)."
    )


def test_a_loss_that_only_adapting_mends_holds_in_part():
    evidence = judge(SETTINGS, trained(0.7, 0.6, 0.9))
    assert evidence.verdict == "holds in part"
    assert [part.shown for part in evidence.parts] == [False, True, True]
    assert evidence.parts[0].figures == "-10.00 (-10.00 to -10.00) points"
    assert evidence.notes == (
        "Contrary to its sources, mlp keeps less accuracy in other inks with batch norm.",
    )
    assert evidence.headline == (
        "Batch norm changes the accuracy kept in other inks by -10 points (mlp); adapted to the "
        "ink, by +20 points (mlp)."
    )


def test_networks_that_did_not_train_show_nothing():
    evidence = judge(SETTINGS, trained(0.2, 0.7, 0.9, own=0.7))
    assert evidence.verdict == "not shown"
    assert {(part.figures, part.shown) for part in evidence.parts} == {
        ("an unknown number of points", None)
    }
    assert evidence.headline == (
        "In no pair of runs do both sides learn their own ink, so others tell nothing."
    )
    [note] = evidence.notes
    assert note == (
        "With mlp nothing is compared with plain: in no pair of runs do both sides reach 80% in "
        "their own ink."
    )


def test_a_network_that_does_not_train_without_batch_norm_is_told_of_apart():
    cases = [*trained(0.5, 0.7, 0.9), *trained(0.2, 0.7, 0.9, network="vgg")]
    for row in [row for case in cases for row in case]:
        if (row["network"], row["kind"], row["ink"]) == ("vgg", "plain", "black"):
            row["accuracy"] = 0.3
    settings = Robustness(networks=(("mlp", 10, 0.1), ("vgg", 10, 0.1)), others=INKS)
    evidence = judge(settings, cases)
    assert [part.shown for part in evidence.parts] == [True, True, True, None, None, True]
    assert evidence.headline == (
        "Batch norm changes the accuracy kept in other inks by +20 points (mlp); adapted to the "
        "ink, by +40 points (mlp)."
    )
    [note] = evidence.notes
    assert note == (
        "With vgg nothing is compared with plain: in no pair of runs do both sides reach 80% in "
        "their own ink."
    )


def test_each_network_has_its_own_parts_and_figures():
    settings = Robustness(networks=(("mlp", 10, 0.1), ("vgg", 10, 0.1)), others=INKS)
    evidence = judge(settings, [*trained(0.5, 0.7, 0.9), *trained(0.7, 0.675, 0.7, network="vgg")])
    assert [part.shown for part in evidence.parts] == [True, True, True, False, False, True]
    assert evidence.headline == (
        "Batch norm changes the accuracy kept in other inks by +20 points (mlp) and -2.5 points "
        "(vgg); adapted to the ink, by +40 points (mlp) and +0.0 points (vgg)."
    )
    rows = [dot.row for dot in evidence.figures[1].dots]
    assert rows[2:4] == ["mlp, adapted over as it is", "vgg, batch norm as it is over plain"]


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
