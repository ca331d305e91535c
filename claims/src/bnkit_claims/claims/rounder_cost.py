"""Claim 9: batch norm makes the cost rounder and smoother, so that gradients lead further."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.experiments.loaders import first_of
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.statistics import PairedRatio, paired_ratio
from bnkit.moments import Moments
from bnkit.observation import normalising_by_batch_statistics
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dots, Lines, Rule, Surface, Surfaces, band, ranged
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Evidence, Part, above_one
from bnkit_claims.core.gradients import distance, gradient_at, norm, parameters_of
from bnkit_claims.core.pairs import Records, ratio_of, rounded, select
from bnkit_claims.core.trainings import experiment_for, in_segments

MEASURES = ("loss range", "gradient predictiveness", "effective smoothness")
INPUTS = ("raw", "normalised")


@dataclass(frozen=True, kw_only=True)
class RounderCost(ClaimSettings):
    """The logistic regression, and the network whose cost is followed along its steps.

    `reaches` are the lengths of the looks ahead, in steps of training: half a step to four, as
    Santurkar et al. 2018 do (section 3.1).
    """

    examples: int = 400
    learning_rates: tuple[float, ...] = (0.1, 0.5)
    reaches: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 4.0)
    activation: str = "relu"
    init: str = "glorot"
    hidden: tuple[int, ...] = (100, 100, 100)
    batch_size: int = 60
    steps: int = 500
    every: int = 20
    hessian_hidden: int = 10
    grid: int = 21


def run(settings: RounderCost, run_cases: RunCases = in_turn) -> Evidence:
    """Return the shape of the cost: of logistic regression, and of a network along its steps."""
    seeds = range(settings.seeds)
    regressions = run_cases(regress, settings, list(seeds))
    curved = run_cases(hidden_curvature, settings, list(product(SIDES, seeds)))
    walked = run_cases(walk, settings, list(product(SIDES, settings.learning_rates, seeds)))
    return judge(settings, regressions, curved, walked)


def regress(settings: RounderCost, seed: int) -> dict[str, Any]:
    """Return the condition number of the Hessian at the optimum, raw and normalised.

    One feature lies in [0, 1] and the other in [1, 1000]; classes are drawn by a logistic model of
    both. Normalised features are those of batch norm without gamma and beta. `surface` is the mean
    loss around the optimum, on equal axes: over changes of both weights by the same amounts.
    """
    features, targets = examples(settings.examples, seed)
    found: dict[str, Any] = {"seed": seed}
    for name, x in zip(INPUTS, (features, normalised(features)), strict=True):
        inputs = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], dim=1)
        weights = optimum(inputs, targets)
        found[name] = condition_number(hessian(inputs, weights))
        found[f"{name} surface"] = _over_plane(settings, _around(inputs, targets, weights))
    return found


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return features (count, 2), in [0, 1] and in [1, 1000], and their classes, 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    chance = torch.sigmoid(4 * (uniform.sum(1) - 1))
    drawn = torch.rand(count, generator=generator, dtype=torch.float64) < chance
    return uniform * torch.tensor([1.0, 999.0]) + torch.tensor([0.0, 1.0]), drawn.double()


def normalised(features: Tensor) -> Tensor:
    """Return the features (N, C) with mean 0 and variance 1, each over all examples."""
    moments = Moments.of(features)
    return (features - moments.mean) / moments.variance.sqrt()


def loss_of(inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean logistic loss; `weights` (..., features) give one value each."""
    logits = weights @ inputs.T  # (..., N)
    return F.softplus(logits).mean(-1) - (logits * targets).mean(-1)


def hessian(inputs: Tensor, weights: Tensor) -> Tensor:
    """Return the exact Hessian of the mean logistic loss, Xᵀ diag(p (1 − p)) X / N."""
    p = torch.sigmoid(inputs @ weights)
    return inputs.T @ (inputs * (p * (1 - p))[:, None]) / len(inputs)


def condition_number(matrix: Tensor) -> float:
    """Return the largest ÷ the smallest eigenvalue of a positive definite matrix."""
    values = torch.linalg.eigvalsh(matrix)
    return float(values[-1] / values[0])


def optimum(inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the weights of least loss, by Newton's method in scaled features."""
    scale = inputs.abs().max(0).values  # raw features differ a thousandfold
    scaled = inputs / scale
    weights = torch.zeros(inputs.shape[1], dtype=inputs.dtype)
    for _ in range(25):
        gradient = scaled.T @ (torch.sigmoid(scaled @ weights) - targets) / len(targets)
        weights = weights - torch.linalg.solve(hessian(scaled, weights), gradient)
    return weights / scale


def _around(inputs: Tensor, targets: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the loss as a function of changes (2,) of both weights, the bias at its optimum."""
    return lambda change: loss_of(inputs, targets, weights + F.pad(change, (1, 0)))


def _over_plane(settings: RounderCost, loss: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Return `loss(change)` over a square grid of changes (2,); rows are the second of them."""
    side = torch.linspace(-3, 3, settings.grid, dtype=torch.float64)
    values = [[loss(torch.stack([x, y])).item() for x in side] for y in side]
    return {"axis": side.tolist(), "values": values}


def hidden_curvature(settings: RounderCost, case: tuple[Side, int]) -> dict[str, Any]:
    """Return the curvature of a small network's cost in the weights of its hidden layer, exactly.

    The Hessian is that of the first mini-batch's mean loss (batch norm by its statistics), at
    the initial weights. `surface` is the loss over the plane of the two eigenvectors named below.
    The smallest eigenvalues are 0 on both sides, for pixels that are always
    blank and, with batch norm, for the scale of each unit: so `spread` is the largest ÷ the
    middle one of those above a millionth of the largest, all by size.
    """
    side, seed = case
    drawn = experiment_for(
        settings,
        hidden=[settings.hessian_hidden],
        activations=["tanh"],
    )
    model = drawn.network(side, "tanh", seed).double()
    inputs, targets = first_of(drawn.loaders(seed).train)
    own = parameters_of(model)
    name, weight = next((n, v) for n, v in own.items() if v.dim() == 2)

    def loss(flat: Tensor) -> Tensor:
        moved = {**own, name: flat.view_as(weight)}
        return F.cross_entropy(
            torch.func.functional_call(model, moved, (inputs.double(),)), targets
        )

    start = weight.flatten()
    with normalising_by_batch_statistics(model):
        values, vectors = torch.linalg.eigh(torch.func.jacrev(torch.func.grad(loss))(start))
        order = values.abs().argsort(descending=True)
        # Among those above a millionth of the largest; the rest are zero but for rounding.
        middle = order[int((values.abs() > 1e-6 * values.abs().max()).sum()) // 2]
        plane = vectors[:, [order[0], middle]].T  # (2, weights)
        surface = _over_plane(settings, lambda change: loss(start + change @ plane))
    return {
        "side": side,
        "seed": seed,
        "largest": values[order[0]].abs().item(),
        "spread": (values[order[0]] / values[middle]).abs().item(),
        "surface": surface,
    }


def walk(settings: RounderCost, case: tuple[Side, float, int]) -> dict[str, Any]:
    """Return the three measures of Santurkar et al. 2018 (section 3.1) along one training."""
    side, rate, seed = case
    drawn = experiment_for(settings, activations=[settings.activation])
    model = drawn.network(side, settings.activation, seed)
    batches = iter(drawn.loaders(seed).train)
    segments = in_segments(
        model, drawn.loaders(seed), learning_rate=rate, steps=settings.steps, every=settings.every
    )
    sizes = [rate * reach for reach in settings.reaches]
    looks = [look_ahead(model, next(batches), sizes) for _ in segments]
    curves = {name: [look[name] for look in looks] for name in MEASURES}
    return {"side": side, "rate": rate, "seed": seed, **curves}


def look_ahead(model: nn.Module, batch: Any, sizes: Sequence[float]) -> dict[str, float | None]:
    """Return how loss and gradient change along the gradient of this mini-batch.

    The loss range is the largest − the smallest loss, gradient predictiveness the largest distance
    of a gradient from the first, effective smoothness the largest such distance ÷ how far the
    step went. None where it is not finite.
    """
    own = parameters_of(model)
    loss, gradient = gradient_at(model, own, batch)
    losses, turns, ratios = [loss], [], []
    for size in sizes:
        moved = {name: value - size * gradient[name] for name, value in own.items()}
        ahead, turned = gradient_at(model, moved, batch)
        losses.append(ahead)
        turns.append(distance(turned, gradient))
        ratios.append(turns[-1] / max(size * norm(gradient), 1e-30))
    values = (max(losses) - min(losses), max(turns), max(ratios))
    return {n: v if math.isfinite(v) else None for n, v in zip(MEASURES, values, strict=True)}


def judge(
    settings: RounderCost, regressions: Records, curved: Records, walked: Records
) -> Evidence:
    """Return the verdict: each condition number and each measure along the step is smaller."""
    regression = paired_ratio((each["raw"], each["normalised"]) for each in regressions)
    hidden = ratio_of(curved, "spread")
    along = {
        (name, rate): ratio_of(_means(select(walked, rate=rate), name), name)
        for name, rate in product(MEASURES, settings.learning_rates)
    }
    return Evidence(
        headline=_headline(hidden, along.values()),
        parts=(
            _part("rounder cost of logistic regression, inputs normalised", regression),
            _part("rounder cost of a hidden layer", hidden),
            *(
                _part(f"{_SMALLER[name]} at learning rate {rate:g}", ratio)
                for (name, rate), ratio in along.items()
            ),
        ),
        figures=(
            _input_chart(regressions, regression),
            _plane_chart(curved, hidden),
            *(_step_chart(settings, walked, name) for name in MEASURES),
            _condition_chart(regressions, curved),
        ),
        details=(
            *({n: each[n] for n in ("seed", *INPUTS)} for each in regressions),
            *({n: each[n] for n in ("side", "seed", "largest", "spread")} for each in curved),
            *(_row(each) for each in walked),
        ),
    )


def _headline(hidden: PairedRatio, along: Collection[PairedRatio]) -> str:
    start = f"Without batch norm the cost of a hidden layer is {_times([hidden])} as elongated"
    if all(ratio.ratio is None for ratio in along):
        return f"{start}; no pair of runs stays finite along a step."
    finite = all(ratio.both == hidden.both for ratio in along)
    where = "" if finite else ", where both sides stay finite"
    return f"{start}, and loss and gradient change {_times(along)} as much along a step{where}."


def _times(ratios: Iterable[PairedRatio]) -> str:
    known = sorted(ratio.ratio for ratio in ratios if ratio.ratio is not None)
    ends = dict.fromkeys(map(rounded, (*known[:1], *known[-1:])))
    return f"{' to '.join(ends)} times"


def _part(what: str, ratio: PairedRatio) -> Part:
    shown = above_one(ratio)
    unknown = "no pair in which both sides stay finite"
    return Part(what, unknown if ratio.ratio is None else f"{_large(ratio)} times", shown)


def _large(ratio: PairedRatio) -> str:
    if ratio.ratio is None or ratio.low is None or ratio.high is None or ratio.ratio < 1000:
        return str(ratio)
    mean, low, high = (f"{float(f'{v:.2g}'):,.0f}" for v in (ratio.ratio, ratio.low, ratio.high))
    return f"{mean} ({low} to {high})"


def _means(walked: Records, name: str) -> list[Mapping[str, Any]]:
    """Return the cases with the mean over training in place of each step; None if not finite."""
    return [{**each, name: _mean(each[name])} for each in walked]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _row(walked: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {name: walked[name] for name in ("side", "rate", "seed")}
    return {**fixed, **{name: _mean(walked[name]) for name in MEASURES}}


def _surface(panel: str, found: Mapping[str, Any]) -> Surface:
    axis = tuple(found["axis"])
    return Surface(panel, axis, axis, tuple(map(tuple, found["values"])))


def _input_chart(regressions: Records, ratio: PairedRatio) -> Surfaces:
    surfaces = tuple(
        _surface(f"{name} inputs", regressions[0][f"{name} surface"]) for name in INPUTS
    )
    return Surfaces(
        title=(
            f"The cost for inputs in [0, 1] beside [1, 1000] is {_large(ratio)} times as elongated "
            f"as for normalised ones"
        ),
        x=Axis("change of the first weight"),
        y=Axis("change of the second weight"),
        value=Axis("mean logistic loss", logarithmic=True),
        surfaces=surfaces,
    )


def _plane_chart(curved: Records, ratio: PairedRatio) -> Surfaces:
    first = [each for each in curved if each["seed"] == curved[0]["seed"]]
    times = "" if ratio.ratio is None else f", {ratio.ratio:.1f} times as far apart without"
    return Surfaces(
        title=f"The cost of a hidden layer along a steep and a middling direction{times}",
        x=Axis("change along the steepest eigenvector"),
        y=Axis("change along the middle one"),
        value=Axis("cross-entropy of a mini-batch"),
        surfaces=tuple(_surface(each["side"], each["surface"]) for each in first),
    )


def _step_chart(settings: RounderCost, walked: Records, name: str) -> Lines:
    steps = list(range(0, settings.steps + 1, settings.every))
    lines = [
        band(
            side,
            steps,
            [each[name] for each in select(walked, side=side, rate=rate)],
            side=side,
            panel=f"learning rate {rate:g}",
        )
        for rate, side in product(settings.learning_rates, SIDES)
    ]
    title, axis = _TITLES[name]
    return Lines(title, Axis("training step"), Axis(axis, logarithmic=True), tuple(lines))


_SMALLER = {
    "loss range": "smaller change of the loss",
    "gradient predictiveness": "smaller change of the gradient",
    "effective smoothness": "slower turn of the gradient",
}
_TITLES = {
    "loss range": (
        "How much the loss changes along the gradient, half a step to four ahead",
        "largest − smallest loss, median and range",
    ),
    "gradient predictiveness": (
        "How far the gradient ahead is from the one that the step follows",
        "largest distance of the gradients, median and range",
    ),
    "effective smoothness": (
        "How fast the gradient turns along the step",
        "distance of the gradients ÷ distance gone, median and range",
    ),
}


def _condition_chart(regressions: Records, curved: Records) -> Dots:
    dots = [
        *(
            ranged("logistic regression", f"{name} inputs", [each[name] for each in regressions])
            for name in INPUTS
        ),
        *(
            ranged(
                "hidden layer", side, [each["spread"] for each in select(curved, side=side)], side
            )
            for side in SIDES
        ),
    ]
    return Dots(
        title="Condition of the cost: 1 is round",
        x=Axis("largest eigenvalue ÷ smallest (hidden layer: middle), median and range", True),
        dots=tuple(dots),
        rule=Rule(1, "round"),
    )


CLAIM = Claim(
    name="rounder-cost",
    statement="Batch norm makes the cost rounder and smoother, so that gradients lead further.",
    sources=(
        Source(
            "Andrew Ng's lectures",
            "inputs of different ranges make contours long and thin, and normalised ones round; "
            "batch norm does the same for the inputs of hidden layers",
        ),
        Source(
            "Santurkar et al. 2018, section 3",
            "with batch norm loss and gradient change less along the step, which is why it helps",
        ),
    ),
    measurement=(
        "Logistic regression on one feature in [0, 1] and one in [1, 1000]: condition number of "
        "the exact Hessian at the optimum, raw and normalised. A small hidden layer: its exact "
        "Hessian at the initial weights, the largest eigenvalue divided by the middle one. A "
        "network with three hidden layers in training: from half a step to four along the gradient "
        "of a mini-batch, the range of the loss, the largest distance between the gradients there "
        "and here, and that divided by the length of the step, averaged over training."
    ),
    criteria=(
        "Eight parts: both condition numbers, and the three measures at each of two learning "
        "rates. Each is shown where the 95% interval over seeds of plain ÷ batch norm (raw ÷ "
        "normalised) lies above 1, and refuted where it ends below 1.1."
    ),
    sizes={
        "toy": RounderCost(
            seeds=3,
            examples=100,
            learning_rates=(0.5,),
            hidden=(12,),
            steps=20,
            every=10,
            hessian_hidden=2,
            grid=5,
        ),
        "digits": RounderCost(),
        "mnist": RounderCost(data="mnist", steps=2000, every=50, hessian_hidden=2),
    },
    run=run,
)
