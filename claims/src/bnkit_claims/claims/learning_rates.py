"""Claim 2: batch norm lets a network be trained at higher learning rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.experiments.loaders import first_of
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.statistics import PairedRatio, paired_ratio
from bnkit_claims.core.cases import in_turn
from bnkit_claims.core.charts import Axis, Dot, Dots, Line, Lines, Rule
from bnkit_claims.core.claim import Claim, ClaimSettings, RunCases, Source
from bnkit_claims.core.evidence import Beside, Evidence, Part
from bnkit_claims.core.pairs import above_one_or_alone, rounded
from bnkit_claims.core.trainings import experiment_for, trial


@dataclass(frozen=True, kw_only=True)
class LearningRates(ClaimSettings):
    """The sweep of learning rates, and the line search along the first gradient."""

    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    hidden: tuple[int, ...] = (100, 100, 100)
    batch_size: int = 60
    steps: int = 500
    target: float = 0.9
    step_sizes: tuple[float, ...] = tuple(10 ** (e / 4) for e in range(-12, 13))
    explosion: float = 1e3  # Bjorck et al. 2018: relative loss at which a step has diverged


def run(settings: LearningRates, run_cases: RunCases = in_turn) -> Evidence:
    """Return the largest learning rates that train, and how far the first step may go."""
    seeds = range(settings.seeds)
    trained = run_cases(largest_rate, settings, list(product(SIDES, seeds)))
    searched = run_cases(line_search, settings, list(product(SIDES, seeds)))
    return judge(settings, trained, searched)


def largest_rate(settings: LearningRates, case: tuple[Side, int]) -> dict[str, Any]:
    """Return the final held-out accuracy at each learning rate, None for runs that diverged."""
    side, seed = case
    accuracies = {}
    for rate in settings.learning_rates:
        found = trial(
            settings,
            side,
            seed=seed,
            learning_rate=rate,
            evaluate_every=settings.steps,
        )
        accuracies[str(rate)] = found.metric if found.outcome == "finished" else None
    return {"side": side, "seed": seed, "accuracies": accuracies}


def line_search(settings: LearningRates, case: tuple[Side, int]) -> dict[str, Any]:
    """Return loss(after a step) ÷ loss(before) over step sizes along the first gradient.

    After Bjorck et al. 2018, section 3.1: the first mini-batch, in training mode, both times.
    """
    side, seed = case
    drawn = experiment_for(settings)
    model = drawn.network(side, "relu", seed)
    inputs, targets = first_of(drawn.loaders(seed).train)
    before = F.cross_entropy(model(inputs), targets)
    gradients = torch.autograd.grad(before, list(model.parameters()))
    ratios = [
        _loss_after(model, gradients, size, inputs, targets) / before.item()
        for size in settings.step_sizes
    ]
    return {"side": side, "seed": seed, "ratios": ratios}


@torch.no_grad()
def _loss_after(
    model: nn.Module, gradients: Sequence[Tensor], size: float, inputs: Tensor, targets: Tensor
) -> float:
    moved = {
        name: parameter - size * gradient
        for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True)
    }
    loss = F.cross_entropy(torch.func.functional_call(model, moved, (inputs,)), targets)
    return float(loss.nan_to_num(torch.inf).clamp(max=1e30))


def judge(
    settings: LearningRates,
    trained: Sequence[Mapping[str, Any]],
    searched: Sequence[Mapping[str, Any]],
) -> Evidence:
    """Return the verdict: each ratio, batch norm ÷ plain, has to lie above 1 with its interval."""
    rates = {(r["side"], r["seed"]): _largest(r["accuracies"], settings.target) for r in trained}
    steps = {(r["side"], r["seed"]): _longest(r["ratios"], settings) for r in searched}
    rate, step = _ratio(rates), _ratio(steps)
    return Evidence(
        headline=(
            f"With batch norm the largest learning rate that trains {_roughly(rate, 'as large')}, "
            f"and the longest first step before the loss explodes {_roughly(step, 'as long')}."
        ),
        parts=(
            Part(
                "the largest learning rate that trains",
                _told(rate, "as large"),
                above_one_or_alone(rate),
            ),
            Part(
                "the longest step before the loss explodes",
                _told(step, "as long"),
                above_one_or_alone(step),
            ),
        ),
        beside=(Beside("learning rates tried", ", ".join(map(str, settings.learning_rates))),),
        figures=(_accuracy_chart(settings, trained), _search_chart(settings, searched)),
        details=tuple(
            {"side": side, "seed": seed, "largest rate": value, "longest step": steps[side, seed]}
            for (side, seed), value in rates.items()
        ),
    )


def _roughly(ratio: PairedRatio, times: str) -> str:
    lone = (ratio.only_batch_norm > 0, ratio.only_plain > 0)
    if ratio.ratio is not None:
        both = " where both sides have one" if any(lone) else ""
        return f"is {rounded(ratio.ratio)} times {times}{both}"
    one_side = {(True, False): "has no plain counterpart", (False, True): "does not exist"}
    return one_side.get(lone, "is unknown")


def _told(ratio: PairedRatio, times: str) -> str:
    """Return the ratio over the seeds with both values, and how many seeds have one or none."""
    lone = {
        "only with batch norm": ratio.only_batch_norm,
        "only without": ratio.only_plain,
        "on neither side": ratio.neither,
    }
    known = [f"{ratio} times {times} with batch norm"] if ratio.both else []
    return "; ".join(
        known
        + [f"{side} from {count} of {ratio.pairs} seeds" for side, count in lone.items() if count]
    )


def _ratio(values: Mapping[tuple[str, int], float | None]) -> PairedRatio:
    """Return batch norm ÷ plain: `paired_ratio` compares costs, so each value goes in inverted."""
    seeds = sorted({seed for _, seed in values})
    return paired_ratio(
        (_inverse(values["plain", seed]), _inverse(values["batch norm", seed])) for seed in seeds
    )


def _inverse(value: float | None) -> float | None:
    return None if value is None else 1 / value


def _largest(accuracies: Mapping[str, float | None], target: float) -> float | None:
    return max((float(r) for r, a in accuracies.items() if a and a >= target), default=None)


def _longest(ratios: Sequence[float], settings: LearningRates) -> float | None:
    """Return the longest step before the first that explodes."""
    safe = None
    for size, ratio in zip(settings.step_sizes, ratios, strict=True):
        if ratio > settings.explosion:
            break
        safe = size
    return safe


def _accuracy_chart(settings: LearningRates, trained: Sequence[Mapping[str, Any]]) -> Lines:
    lines = []
    for side in SIDES:
        runs = [r["accuracies"] for r in trained if r["side"] == side]
        by_rate = [
            sorted(100 * (run[str(r)] or 0) for run in runs) for r in settings.learning_rates
        ]
        lines.append(
            Line(
                name=side,
                side=side,
                x=settings.learning_rates,
                y=tuple(values[len(values) // 2] for values in by_rate),
                low=tuple(values[0] for values in by_rate),
                high=tuple(values[-1] for values in by_rate),
            )
        )
    return Lines(
        title="Final accuracy over the learning rate",
        x=Axis("learning rate", logarithmic=True),
        y=Axis("held-out accuracy (%), median and range; 0: diverged"),
        lines=tuple(lines),
        rule=Rule(100 * settings.target, "trains"),
    )


def _search_chart(settings: LearningRates, searched: Sequence[Mapping[str, Any]]) -> Dots:
    dots = [
        Dot(f"seed {r['seed']}", r["side"], _longest(r["ratios"], settings), side=r["side"])
        for r in searched
    ]
    axis = Axis("longest first step along the gradient before the loss grows 1,000 times", True)
    return Dots(title="How far the first step may go", x=axis, dots=tuple(dots))


CLAIM = Claim(
    name="learning-rates",
    statement="Batch norm lets a network be trained at higher learning rates.",
    sources=(
        Source("Ioffe and Szegedy 2015, section 3.3", "it prevents small changes from growing"),
        Source("Udacity's lesson", "networks with it can be trained at higher rates"),
        Source("Bjorck et al. 2018, section 3.1", "the gain of batch norm is its higher rates"),
    ),
    measurement=(
        "Both sides of the network are trained at each learning rate of a sweep; a rate trains if "
        "the run ends at the target accuracy or above. Then, at the initial weights, the loss of "
        "the first mini-batch is measured again after one gradient step of growing length: a step "
        "has diverged where the loss is more than 1,000 times what it was."
    ),
    criteria=(
        "Holds if both ratios (batch norm ÷ plain), of the largest rate that trains and of the "
        "longest step, have 95% intervals over seeds above 1; a ratio whose interval ends below "
        "1.1 speaks against it."
    ),
    sizes={
        "toy": LearningRates(
            seeds=3, learning_rates=(0.1, 10.0), hidden=(16,), steps=60, target=0.5
        ),
        "digits": LearningRates(),
        "mnist": LearningRates(data="mnist", steps=2000),
    },
    run=run,
)
