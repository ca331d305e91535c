from itertools import product

import pytest
import torch

from bnkit.experiments.results import SIDES
from bnkit_claims.claims.independent_layers import (
    CLAIM,
    DISTURBANCES,
    EFFECTS,
    IndependentLayers,
    change_of,
    disturbed,
    judge,
    run,
    shift_of,
)
from bnkit_claims.core.evidence import Part
from bnkit_claims.core.trainings import experiment_for

TOY = CLAIM.sizes["toy"]
INVENTED = IndependentLayers(
    activations=("relu",), learning_rates=(0.1,), noise=(1.0,), factors=(2.0,), further=(5,)
)


def found(plain, batch_norm, seeds=4, **others):
    """Effects of every disturbance, plain a little apart by seed; `others` name other pairs."""
    return [
        {
            "side": side,
            "activation": "relu",
            "seed": seed,
            "loss": 0.1,
            **{
                kind: {
                    effect: [
                        others.get(effect, (plain, batch_norm))[place] + 0.001 * seed * (not place)
                    ]
                    for effect in EFFECTS
                }
                for kind in DISTURBANCES
            },
        }
        for (place, side), seed in product(enumerate(SIDES), range(seeds))
    ]


@pytest.mark.parametrize(
    ("evidence", "verdict", "shown"),
    [
        (found(0.9, 0.1), "holds", (3, 3, 2)),
        (found(0.1, 0.9), "does not hold", (0, 0, 0)),
        (found(0.5, 0.49), "holds", (3, 3, 2)),  # little, and shown: the interval is above 0
        (found(0.9, 0.1, rise=(0.1, 0.9)), "holds in part", (3, 3, 0)),
        (found(0.9, 0.1, change=(0.1, 0.9)), "holds in part", (3, 0, 2)),
    ],
)
def test_the_verdict_and_the_headline_follow_from_the_evidence(evidence, verdict, shown):
    judged = judge(INVENTED, evidence)
    assert judged.verdict == verdict
    each = [part.shown for part in judged.parts]
    shift, change, rise = shown
    assert each == [shift == 3] * 3 + [change == 3] * 3 + [rise == 2] * 2
    assert judged.headline == (
        "With batch norm a disturbed first layer demonstrably shifts later distributions less in "
        f"{shift} of 3 cases, changes single inputs less in {change} of 3, and raises the loss "
        f"less in {rise} of 2."
    )


def test_each_part_says_by_how_much_an_effect_is_smaller_with_batch_norm():
    judged = judge(INVENTED, found(0.9, 0.1, rise=(0.1, 0.9)))
    smaller = "by +0.80 (+0.80 to +0.80) standard deviations"
    larger = "by -0.80 (-0.80 to -0.80) nats"
    assert judged.parts == (
        Part("smaller shift of the distributions by noise (relu)", smaller, True),
        Part("smaller shift of the distributions by scaling (relu)", smaller, True),
        Part("smaller shift of the distributions by training (relu)", smaller, True),
        Part("smaller change of the inputs by noise (relu)", smaller, True),
        Part("smaller change of the inputs by scaling (relu)", smaller, True),
        Part("smaller change of the inputs by training (relu)", smaller, True),
        Part("smaller rise of the loss by noise (relu)", larger, False),
        Part("smaller rise of the loss by scaling (relu)", larger, False),
    )
    assert judged.notes == (
        "Only gamma and beta can move a normalised distribution: its stability is built in.",
    )


def test_two_seeds_show_nothing():
    judged = judge(INVENTED, found(0.9, 0.1, seeds=2))
    assert judged.verdict == "not shown"
    assert judged.parts[0].figures == "by +0.80 standard deviations"
    assert "less in 0 of 3 cases" in judged.headline


def test_effects_that_are_not_finite_are_unknown():
    nothing = {kind: {effect: [None] for effect in EFFECTS} for kind in DISTURBANCES}
    judged = judge(INVENTED, [{**row, **nothing} for row in found(0.9, 0.1)])
    assert judged.verdict == "not shown"
    assert {part.figures for part in judged.parts} == {"by an unknown amount"}
    assert "raises the loss less in 0 of 2." in judged.headline


def test_in_a_toy_run_batch_norm_is_blind_to_scale_and_keeps_distributions_whatever_the_seed():
    evidence = run(TOY)
    assert {figure.kind for figure in evidence.figures} == {"lines"}
    assert len(evidence.details) == 2 * TOY.seeds * len(DISTURBANCES)
    rows = [row for row in evidence.details if row["side"] == "batch norm"]
    assert (
        max(row["shift"] for row in rows) < 0.01
    )  # gamma and beta of the last layer are as before
    assert max(row["change"] for row in rows if row["disturbance"] == "scale") < 0.01


def network(side):
    drawn = experiment_for(TOY, hidden=[4, 4], activations=["relu"])
    return drawn.network(side, "relu", 0), drawn.loaders(0)


@pytest.mark.parametrize("kind", DISTURBANCES)
@pytest.mark.parametrize("side", SIDES)
def test_only_the_first_layer_is_disturbed_and_only_in_a_copy(side, kind):
    model, loaders = network(side)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = disturbed(model, kind, 2, 0.1, loaders, seed=0)
    changed = {n for n, p in other.named_parameters() if not torch.equal(p, before[n])}
    assert "1.weight" in changed
    assert {name.partition(".")[0] for name in changed} == {"1"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_noise_has_the_strength_of_the_weights_root_mean_square():
    model, loaders = network("plain")
    weight = model[1].weight.detach()
    noise = disturbed(model, "noise", 0.5, 0.1, loaders, seed=0)[1].weight.detach() - weight
    ratio = noise.square().mean().sqrt() / weight.square().mean().sqrt()
    assert ratio.item() == pytest.approx(0.5, rel=0.15)  # 256 draws


def test_a_shift_counts_means_and_deviations_and_a_change_each_example():
    before = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])  # standard deviations 1 and 1
    assert shift_of(before, before + torch.tensor([3.0, 0.0])) == pytest.approx(1.5)
    assert shift_of(before, 2 * before) == pytest.approx(1)
    assert shift_of(before, -before) == 0
    assert change_of(before, -before) == pytest.approx(2)
