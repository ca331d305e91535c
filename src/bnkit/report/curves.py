"""Curves over seeds: median and range of each side at each step, and where runs diverged."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bnkit.experiments.results import Curve, Side, TrialResult

Measure = Callable[[Curve], Sequence[float | None]]


@dataclass(frozen=True)
class Spread:
    """What the seeds of one side show at one step."""

    step: int
    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Divergence:
    """Where a run stopped being finite: its last evaluation and the last finite value there."""

    side: Side
    seed: int
    step: int
    value: float


@dataclass(frozen=True)
class Curves:
    """The sides of one setting: a spread at each step that has any value, and the divergences."""

    spreads: Mapping[Side, tuple[Spread, ...]]
    divergences: tuple[Divergence, ...]

    @property
    def everything(self) -> tuple[Spread, ...]:
        """The spreads of all sides."""
        return tuple(spread for side in self.spreads.values() for spread in side)

    def end(self, side: Side) -> Spread | None:
        """Return the last spread of this side, or None where it has none."""
        return self.spreads[side][-1] if self.spreads[side] else None


def curves_of(trials: Mapping[Side, Sequence[TrialResult]], measure: Measure) -> Curves:
    """Return the curves of `measure` over the trials of one setting.

    A run that diverged counts with its last finite value from there on: it is not dropped. Values
    that are None or not finite are gaps, and a run that was cut short otherwise ends where it ends.
    """
    every_trial = [trial for side in trials.values() for trial in side]
    steps = sorted({step for trial in every_trial for step in trial.curve.steps})
    return Curves(
        spreads={side: _spreads(of_side, measure, steps) for side, of_side in trials.items()},
        divergences=tuple(_divergences(every_trial, measure)),
    )


def _spreads(
    trials: Sequence[TrialResult], measure: Measure, steps: Sequence[int]
) -> tuple[Spread, ...]:
    runs = [_values(trial, measure, steps) for trial in trials]
    at_step = ((step, [run[step] for run in runs if step in run]) for step in steps)
    return tuple(Spread(step, median(v), min(v), max(v)) for step, v in at_step if v)


def _values(trial: TrialResult, measure: Measure, steps: Sequence[int]) -> dict[int, float]:
    values = _finite(trial.curve, measure)
    if trial.outcome == "diverged" and values:
        end, last = list(values.items())[-1]
        values |= {step: last for step in steps if step > end}
    return values


def _divergences(trials: Iterable[TrialResult], measure: Measure) -> Iterable[Divergence]:
    for trial in trials:
        values = _finite(trial.curve, measure)
        if trial.outcome == "diverged" and values:
            last = list(values.values())[-1]
            yield Divergence(trial.side, trial.seed, trial.curve.steps[-1], last)


def _finite(curve: Curve, measure: Measure) -> dict[int, float]:
    values = zip(curve.steps, measure(curve), strict=True)
    return {step: value for step, value in values if value is not None and math.isfinite(value)}
