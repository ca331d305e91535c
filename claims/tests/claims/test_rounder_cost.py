from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit.experiments.results import SIDES
from bnkit_claims.claims.rounder_cost import (
    CLAIM,
    MEASURES,
    RounderCost,
    condition_number,
    examples,
    hessian,
    judge,
    look_ahead,
    loss_of,
    normalised,
    optimum,
    run,
)

INVENTED = RounderCost(learning_rates=(0.1,), steps=10, every=10)
SURFACE = {"axis": [-1.0, 1.0], "values": [[1.0, 2.0], [3.0, 4.0]]}


def evidence(raw, spread, along, seeds=4, lost=0):
    """The verdict on conditions and measures that are so many times as large as the others.

    Without batch norm the measures of the first `lost` seeds, or of all, are not finite.
    """
    by_side = {"plain": 1.0, "batch norm": 0.0}
    apart = [1 + 0.01 * seed for seed in range(seeds)]
    regressions = [
        {
            "seed": seed,
            "raw": raw * apart[seed],
            "normalised": 1.0,
            "raw surface": SURFACE,
            "normalised surface": SURFACE,
        }
        for seed in range(seeds)
    ]
    sides = list(product(SIDES, range(seeds)))
    curved = [
        {
            "side": side,
            "seed": seed,
            "largest": 1.0,
            "spread": (spread * apart[seed]) ** by_side[side],
            "surface": SURFACE,
        }
        for side, seed in sides
    ]

    def measured(side, seed):
        if side == "plain" and (along is None or seed < lost):
            return [1.0, None]
        return [((along or 1) * apart[seed]) ** by_side[side]] * 2

    walked = [
        {
            "side": side,
            "seed": seed,
            "rate": 0.1,
            **{name: measured(side, seed) for name in MEASURES},
        }
        for side, seed in sides
    ]
    return judge(INVENTED, regressions, curved, walked)


@pytest.mark.parametrize(
    ("times", "verdict", "shown", "headline"),
    [
        ((1e6, 5.0, 3.0), "holds", [True] * 5, "5.1 times as elongated, and ... 3 times"),
        (
            (0.5, 0.5, 0.5),
            "does not hold",
            [False] * 5,
            "0.51 times as elongated, and ... 0.51 times",
        ),
        (
            (1e6, 5.0, 0.5),
            "holds in part",
            [True, True, False, False, False],
            "5.1 times as elongated, and ... 0.51 times",
        ),
        (
            (1e6, 0.5, 15.0),
            "holds in part",
            [True, False, True, True, True],
            "0.51 times as elongated, and ... 15 times",
        ),
    ],
)
def test_the_verdict_follows_from_the_evidence(times, verdict, shown, headline):
    found = evidence(*times)
    assert found.verdict == verdict
    assert [part.shown for part in found.parts] == shown
    told = headline.replace("...", "loss and gradient change")
    assert found.headline == (
        f"Without batch norm the cost of a hidden layer is {told} as much along a step."
    )


def test_each_condition_and_each_measure_is_a_part():
    assert [(part.what, part.figures) for part in evidence(1e6, 5.0, 3.0).parts] == [
        (
            "rounder cost of logistic regression, inputs normalised",
            "1,000,000 (990,000 to 1,000,000) times",
        ),
        ("rounder cost of a hidden layer", "5.07 (4.97 to 5.18) times"),
        ("smaller change of the loss at learning rate 0.1", "3.04 (2.98 to 3.11) times"),
        ("smaller change of the gradient at learning rate 0.1", "3.04 (2.98 to 3.11) times"),
        ("slower turn of the gradient at learning rate 0.1", "3.04 (2.98 to 3.11) times"),
    ]


def test_two_seeds_show_nothing():
    found = evidence(1e6, 5.0, 3.0, seeds=2)
    assert found.verdict == "not shown"
    assert {part.shown for part in found.parts} == {None}


def test_measures_that_are_not_finite_are_unknown():
    found = evidence(1e6, 5.0, None)
    assert [part.shown for part in found.parts] == [True, True, None, None, None]
    assert found.parts[2].figures == "no pair in which both sides stay finite"
    assert found.headline == (
        "Without batch norm the cost of a hidden layer is 5.1 times as elongated; no pair of runs "
        "stays finite along a step."
    )


def test_what_is_finite_in_some_runs_only_is_said_to_be():
    found = evidence(1e6, 5.0, 3.0, lost=1)
    assert found.headline.endswith("3.1 times as much along a step, where both sides stay finite.")


def test_a_toy_run_finds_logistic_regression_rounder_whatever_the_seed():
    found = run(CLAIM.sizes["toy"], lambda measure, s, cases: [measure(s, c) for c in cases])
    kinds = ["surfaces", "surfaces", "lines", "lines", "lines", "dots"]
    assert [figure.kind for figure in found.figures] == kinds
    regressions = [row for row in found.details if "raw" in row]
    assert all(row["raw"] > 1000 * row["normalised"] for row in regressions)


def test_the_hessian_of_logistic_regression_is_autograds():
    features, targets = examples(50, seed=0)
    inputs = torch.cat([torch.ones(50, 1, dtype=torch.float64), features], dim=1)
    weights = torch.tensor([0.1, 0.2, -0.003], dtype=torch.float64)
    expected = torch.autograd.functional.hessian(lambda w: loss_of(inputs, targets, w), weights)
    torch.testing.assert_close(hessian(inputs, weights), expected)
    loss = F.binary_cross_entropy_with_logits(inputs @ weights, targets)
    torch.testing.assert_close(loss_of(inputs, targets, weights), loss)


def test_the_optimum_has_no_gradient_and_the_same_loss_raw_and_normalised():
    features, targets = examples(200, seed=1)
    losses = []
    for x in (features, normalised(features)):
        inputs = torch.cat([torch.ones(200, 1, dtype=torch.float64), x], dim=1)
        weights = optimum(inputs, targets)
        gradient = inputs.T @ (torch.sigmoid(inputs @ weights) - targets) / 200
        assert gradient.abs().max() < 1e-10
        losses.append(loss_of(inputs, targets, weights).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_a_circle_has_condition_1_and_an_ellipse_that_of_its_squared_axes():
    assert condition_number(torch.eye(3)) == 1
    assert condition_number(torch.diag(torch.tensor([4.0, 100.0]))) == pytest.approx(25)


def test_along_the_gradient_of_a_linear_model_the_measures_are_those_by_hand():
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    batch = torch.randn(10, 3, dtype=torch.float64), torch.randint(2, (10,))

    def at(weight):
        weight = weight.detach().requires_grad_()
        loss = F.cross_entropy(batch[0] @ weight.T, batch[1])
        return loss.item(), torch.autograd.grad(loss, weight)[0]

    loss, gradient = at(model.weight)
    (near, near_gradient), (far, far_gradient) = (
        at(model.weight - size * gradient) for size in (0.5, 1.0)
    )
    found = look_ahead(model, batch, [0.5, 1.0])
    turns = [(g - gradient).norm().item() for g in (near_gradient, far_gradient)]
    length = gradient.norm().item()
    assert found["loss range"] == pytest.approx(max(loss, near, far) - min(loss, near, far))
    assert found["gradient predictiveness"] == pytest.approx(max(turns))
    smoothness = max(turns[0] / (0.5 * length), turns[1] / length)
    assert found["effective smoothness"] == pytest.approx(smoothness)


def test_what_is_not_finite_is_none():
    model = nn.Linear(2, 2, bias=False)
    batch = torch.full((2, 2), 1e30), torch.tensor([0, 1])
    assert None in look_ahead(model, batch, [1e30]).values()
