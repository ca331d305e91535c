"""Claim 3: with batch norm more activations can be used in deep networks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.experiments.loaders import first_of
from bnkit.experiments.networks import activation as activation_named
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.statistics import SuccessRate, paired_difference
from bnkit.experiments.tasks import inputs_and_targets
from bnkit.experiments.training import Training, train
from bnkit.observation import normalising_by_batch_statistics, seeing_inputs
from bnkit_claims.core.best_rates import Run, edge_notes, final_accuracy, own_best, run_of
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dot, Dots, Rule
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Beside, Evidence, Part
from bnkit_claims.core.pairs import Records, select
from bnkit_claims.core.trainings import experiment_for


@dataclass(frozen=True, kw_only=True)
class Activations(ClaimSettings):
    """The deep networks; `flat` is the share of its steepest slope below which a unit saturates."""

    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu", "leaky-relu", "silu", "gelu")
    learning_rates: tuple[float, ...] = (0.1, 0.3)
    depth: int = 8
    width: int = 50
    init: str = "he"
    batch_size: int = 60
    steps: int = 150
    target: float = 0.8
    flat: float = 0.05


def run(settings: Activations, run_cases: RunCases = in_turn) -> Evidence:
    """Return how often deep networks train with each activation, with and without batch norm."""
    cases = list(product(settings.activations, SIDES, range(settings.seeds)))
    return judge(settings, run_cases(training, settings, cases))


def training(settings: Activations, case: tuple[str, Side, int]) -> dict[str, Any]:
    """Return the run at each learning rate, and the share of saturated units at its end."""
    activation, side, seed = case
    drawn = experiment_for(
        settings,
        hidden=(settings.width,) * settings.depth,
        activations=[activation],
    )
    runs, saturated = {}, {}
    for rate in settings.learning_rates:
        model, loaders = drawn.network(side, activation, seed), drawn.loaders(seed)
        plan = Training(rate, steps=settings.steps, evaluate_every=settings.steps)
        found = train(model, loaders.train, loaders.held_out, plan)
        runs[str(rate)] = run_of(found, length=settings.steps, test=found.curve.metric[-1])
        inputs, _ = inputs_and_targets(first_of(loaders.held_out))
        saturated[str(rate)] = saturated_share(model, inputs, activation, flat=settings.flat)
    return {
        "activation": activation,
        "side": side,
        "seed": seed,
        "runs": runs,
        "saturated": saturated,
    }


def saturated_share(model: nn.Module, inputs: Tensor, activation: str, *, flat: float) -> float:
    """Return the share of (example, unit) pairs, in [0, 1], at which the activation is flat.

    It is flat where its slope is less than `flat` of the steepest it has anywhere, and at what is
    not finite. The statistics are those of the mini-batch.
    """
    make = activation_named(activation)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, make)}  # type: ignore[arg-type]  # a class
    seen: list[Tensor] = []
    with (
        torch.no_grad(),
        normalising_by_batch_statistics(model),
        seeing_inputs(model, layers, lambda _name, _layer, x: seen.append(x.flatten())),
    ):
        model(inputs)
    values = torch.cat(seen)
    slopes = slope_of(make(), values)
    steepest = slope_of(make(), torch.linspace(-8, 8, 1601)).abs().max()
    steep = (slopes.abs() >= flat * steepest) & values.isfinite()
    return 1 - steep.double().mean().item()


def slope_of(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the derivative of an elementwise function at each of the values."""
    values = at.detach().clone().requires_grad_()
    (slopes,) = torch.autograd.grad(function(values).sum(), values)
    return slopes


Rates = Mapping[tuple[str, Side], SuccessRate]
Flat = Mapping[tuple[str, Side], Mapping[int, float]]


def judge(settings: Activations, trained: Records) -> Evidence:
    """Return the verdict: each activation that fails without batch norm trains with it."""
    results = {
        (name, side): select(trained, activation=name, side=side)
        for name, side in product(settings.activations, SIDES)
    }
    best = {
        key: own_best(found, lambda run: -final_accuracy(run)) for key, found in results.items()
    }
    rates = {key: _success(settings, [run for _, run in b.values()]) for key, b in best.items()}
    flat = {key: _flat(results[key], b) for key, b in best.items()}
    needless = [
        name for name in settings.activations if all(_trains(rates[name, side]) for side in SIDES)
    ]
    parts = {name: _part(rates, name) for name in settings.activations if name not in needless}
    return Evidence(
        headline=_headline(settings, rates, [name for name in parts if parts[name].shown]),
        parts=tuple(parts.values()) or (Part("activations that need help", "none", None),),
        beside=tuple(_beside(settings, rates, flat, needless)),
        notes=(
            *_notes(settings, flat, needless),
            *edge_notes(
                {f"{side} with {name}": found for (name, side), found in best.items()},
                settings.learning_rates,
            ),
        ),
        figures=(_success_chart(settings, rates), _flat_chart(settings, flat)),
        details=tuple(
            {
                "activation": name,
                "side": side,
                "seed": seed,
                "learning rate": rate,
                "accuracy": final_accuracy(run),
                "saturated": flat[name, side][seed],
            }
            for (name, side), by_seed in best.items()
            for seed, (rate, run) in by_seed.items()
        ),
    )


def _success(settings: Activations, runs: Sequence[Run]) -> SuccessRate:
    return SuccessRate(sum(final_accuracy(run) >= settings.target for run in runs), len(runs))


def _flat(results: Records, best: Mapping[int, tuple[float, Run]]) -> dict[int, float]:
    return {r["seed"]: r["saturated"][str(best[r["seed"]][0])] for r in results}


def _trains(rate: SuccessRate) -> bool | None:
    """Return whether more than half of all runs train, or fewer, by the interval."""
    low, high = rate.interval
    return True if low > 0.5 else False if high < 0.5 else None


def _part(rates: Rates, activation: str) -> Part:
    plain, batch_norm = (_trains(rates[activation, side]) for side in SIDES)
    return Part(f"{activation} made usable", _told(rates, activation), _rescued(plain, batch_norm))


def _rescued(plain: bool | None, batch_norm: bool | None) -> bool | None:
    """Return whether batch norm trains what plain does not; None where either is not clear."""
    if batch_norm is False:
        return False
    return True if batch_norm and plain is False else None


def _told(rates: Rates, activation: str) -> str:
    plain, batch_norm = (rates[activation, side] for side in SIDES)
    return f"{plain} runs train without, {batch_norm} with batch norm"


def _headline(settings: Activations, rates: Rates, rescued: Sequence[str]) -> str:
    plain, batch_norm = (_count(settings, rates, side) for side in SIDES)
    return (
        f"At {settings.depth} hidden layers {batch_norm} of {len(settings.activations)} "
        f"activations clearly train with batch norm and {plain} without it; it rescues "
        f"{', '.join(rescued) or 'none'}."
    )


def _count(settings: Activations, rates: Rates, side: Side) -> int:
    return sum(bool(_trains(rates[name, side])) for name in settings.activations)


def _beside(
    settings: Activations, rates: Rates, flat: Flat, needless: Sequence[str]
) -> Iterator[Beside]:
    for name in needless:
        yield Beside(f"{name}, which needs no help", _told(rates, name))
    for name in settings.activations:
        plain, batch_norm = (f"{median(flat[name, side].values()):.0%}" for side in SIDES)
        shares = f"{plain} without, {batch_norm} with batch norm"
        yield Beside(f"saturated units with {name}", shares)


def _notes(settings: Activations, flat: Flat, needless: Sequence[str]) -> Iterator[str]:
    if needless:
        yield f"These train with and without batch norm, and so say nothing: {', '.join(needless)}."
    highs = {
        name: paired_difference((share, with_it[seed]) for seed, share in without.items()).high
        for name in settings.activations
        for without, with_it in [(flat[name, "plain"], flat[name, "batch norm"])]
    }
    fewer = [name for name, high in highs.items() if high is not None and high < 0]
    if fewer:
        yield f"Clearly fewer units saturate with batch norm for {', '.join(fewer)}."
    elif None not in highs.values():
        yield "Contrary to its sources, clearly fewer units saturate with no activation."


def _success_chart(settings: Activations, rates: Rates) -> Dots:
    plain, batch_norm = (_count(settings, rates, side) for side in SIDES)
    return Dots(
        title=(
            f"{batch_norm} of {len(settings.activations)} activations train with batch "
            f"norm at depth {settings.depth}, {plain} without"
        ),
        x=Axis(f"runs that end at {settings.target:.0%} or above (%), with 95% interval"),
        dots=tuple(
            Dot(name, side, *_percents(rate.successes / rate.runs, *rate.interval), side)
            for (name, side), rate in rates.items()
        ),
        rule=Rule(50, "half"),
    )


def _flat_chart(settings: Activations, flat: Flat) -> Dots:
    return Dots(
        title=f"Share of units on a flat stretch of their activation, depth {settings.depth}",
        x=Axis("saturated units and examples at the end of training (%), median and range"),
        dots=tuple(
            Dot(name, side, *_percents(median(v), min(v), max(v)), side)
            for (name, side), shares in flat.items()
            for v in [shares.values()]
        ),
    )


def _percents(value: float, low: float, high: float) -> tuple[float, float, float]:
    return 100 * value, 100 * low, 100 * high


CLAIM = Claim(
    name="activations",
    statement="Batch norm makes more activations usable in deep networks.",
    sources=(
        Source("Ioffe and Szegedy 2015, section 4.2", "a sigmoid Inception reaches 69.8% with it"),
        Source("Udacity's lesson", "activations that fail in deep networks become viable again"),
        Source("Ioffe and Szegedy 2015, section 1", "it keeps units out of saturation"),
    ),
    measurement=(
        "Deep networks with each activation, from He's initial weights, are trained for a fixed "
        "number of steps at each learning rate of a sweep; each side counts at its own best rate, "
        "which is chosen on the other seeds. A run trains if it ends at the target accuracy or "
        "above. At the end of training the slope of the activation is taken at every unit and "
        "example of a held-out mini-batch: a unit is saturated where it is below a twentieth of "
        "the steepest slope (for ReLU, where it is off)."
    ),
    criteria=(
        "An activation trains where the 95% interval (Wilson) of its success rate lies above a "
        "half, and fails where it lies below. Those that train on both sides say nothing. Each "
        "other is shown if it fails without batch norm and trains with it, and refuted if it fails "
        "with it. The claim holds if all these are shown."
    ),
    sizes={
        "toy": Activations(
            seeds=4,
            activations=("sigmoid", "relu"),
            learning_rates=(0.3,),
            depth=4,
            width=16,
            steps=40,
            target=0.5,
        ),
        "digits": Activations(),
        "mnist": Activations(
            data="mnist", learning_rates=(0.03, 0.1, 0.3, 1.0), width=100, steps=600
        ),
    },
    run=run,
)
