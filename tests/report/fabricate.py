"""Comparisons made up for the tests: deterministic curves that look like real ones."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from bnkit.experiments.results import SIDES, Curve, Side, TrialResult
from bnkit.experiments.summary import Comparison

STEPS = tuple(range(50, 2001, 50))  # 40 evaluations
SETTINGS = {
    "network": "mlp 100-100-100",
    "data": "digits",
    "training steps": 2000,
    "batch size": 60,
    "learning rates": [0.01, 0.1, 1.0, 3.0],
    "activations": ["sigmoid", "relu"],
}
ENVIRONMENT = {
    "bnkit": "0.1.0",
    "torch": "2.13.0",
    "python": "3.11.2",
    "machine": "Some CPU at 3 GHz, 8 cores",
    "date": "2026-11-21",
}

Change = Callable[[TrialResult], TrialResult]


def comparison(
    learning_rates: Sequence[float] = (0.01, 0.1, 1.0, 3.0),
    activations: Sequence[str] = ("sigmoid", "relu"),
    seeds: int = 3,
    *,
    change: Change = lambda trial: trial,
    target: float = 0.9,
) -> Comparison:
    """Return a sweep in which batch norm helps, every trial passed through `change`."""
    settings = ((lr, a, s, side) for a in activations for lr in learning_rates
                for s in range(seeds) for side in SIDES)  # fmt: skip
    trials = tuple(change(trial(*setting)) for setting in settings)
    return Comparison(SETTINGS, ENVIRONMENT, target, "bnkit compare --seeds 3", trials)


def trial(learning_rate: float, activation: str, seed: int, side: Side) -> TrialResult:
    """Return one run: plain networks diverge at large rates, and sigmoids crawl at small ones."""
    noise = random.Random(f"{learning_rate} {activation} {seed} {side}")
    slow = 6 if activation == "sigmoid" else 1
    if side == "plain":
        diverges = activation != "sigmoid" and learning_rate >= 1
        pace = 45 * slow**2 / learning_rate**0.9 / 3
    else:
        diverges = False
        pace = 8 * (1 + abs(math.log10(learning_rate / 0.3))) ** 2.5 * slow**0.3
    pace *= math.exp(noise.gauss(0, 0.2))
    best = 0.975 - 0.02 * noise.random() - 0.01 * (side == "plain")
    steps = STEPS[: noise.randrange(1, 8)] if diverges else STEPS
    accuracies = [0.1 + (best - 0.1) * (1 - math.exp(-(s / pace))) for s in steps]
    losses = [2.3 * math.exp(-s / pace) + 0.02 * math.exp(-s / 2000) for s in steps]
    jitter = [noise.gauss(0, 0.006) for _ in steps]
    accuracy = tuple(min(1.0, a + j) for a, j in zip(accuracies, jitter, strict=True))
    loss: tuple[float | None, ...] = tuple(
        v * math.exp(30 * j) for v, j in zip(losses, jitter, strict=True)
    )
    if diverges:
        accuracy = tuple(0.1 + 0.03 * noise.random() for _ in steps)
        loss = (*(3.0 * 4**n for n in range(len(steps) - 1)), None)
    extra = 300 if side == "batch norm" else 0
    return TrialResult(
        key=f"{learning_rate}-{activation}-{seed}-{side}",
        side=side,
        learning_rate=learning_rate,
        activation=activation,
        seed=seed,
        outcome="diverged" if diverges else "finished",
        reason=f"the loss was not finite at step {steps[-1]}" if diverges else "",
        curve=Curve(steps, loss, accuracy),
        metric=accuracy[-1],
        test_metric=accuracy[-1] - 0.004,
        parameters=27_710 + 2 * extra,
        buffers=2 * extra + 3 * (extra > 0),
        steps=steps[-1],
        seconds=steps[-1] * (0.00061 if side == "plain" else 0.00093) * noise.uniform(0.9, 1.2),
    )


def without_result(trial: TrialResult, outcome: str, reason: str) -> TrialResult:
    """Return the trial as one that was never trained."""
    blank = replace(trial, curve=Curve(), metric=None, test_metric=None, steps=0, seconds=0.0)
    return replace(blank, outcome=outcome, reason=reason)


def interrupted(trial: TrialResult) -> TrialResult:
    """One setting fails for a reason of its own, and the last seed was never reached."""
    if trial.seed == 2:
        return without_result(trial, "not run", "interrupted before it started")
    if trial.side == "plain" and trial.learning_rate == 3 and trial.activation == "relu":
        return without_result(trial, "failed", "RuntimeError: the worker ran out of memory")
    return trial


def never_run(trial: TrialResult) -> TrialResult:
    """Nothing ran at all."""
    return without_result(trial, "not run", "interrupted before it started")


def only_plain(trial: TrialResult) -> TrialResult:
    """No batch norm run was finished, so there is no pair."""
    return trial if trial.side == "plain" else never_run(trial)


def never_finite(trial: TrialResult) -> TrialResult:
    """Every run diverged before its first evaluation gave a finite loss."""
    curve = Curve(STEPS[:1], (None,), (0.1,))
    return replace(trial, curve=curve, outcome="diverged", metric=0.1, test_metric=0.1)


def in_both_modes(trial: TrialResult) -> TrialResult:
    """Accuracies with the statistics of the batch as well, a little better early on."""
    curve = trial.curve
    better = tuple(min(1.0, a + 0.3 * math.exp(-s / 200)) for s, a in
                   zip(curve.steps, curve.metric, strict=True))  # fmt: skip
    side = better if trial.side == "batch norm" else curve.metric
    return replace(trial, curve=replace(curve, training_mode_metric=side))


NASTY = "</script><img src=x onerror=alert(1)>&\"'{{ 7*7 }}"


def nasty(trial: TrialResult) -> TrialResult:
    """Strings of a user that would break out of a page."""
    if trial.seed == 1:
        return without_result(trial, "failed", f"ValueError: {NASTY}")
    return replace(trial, activation=NASTY)


def three_sides(found: Comparison) -> Comparison:
    """Return the comparison with group norm as well, a point behind batch norm."""
    others = [
        replace(t, side="group norm", key=f"{t.key} group", test_metric=t.test_metric - 0.01)
        for t in found.trials
        if t.side == "batch norm" and t.test_metric is not None
    ]
    return replace(found, trials=(*found.trials, *others))
