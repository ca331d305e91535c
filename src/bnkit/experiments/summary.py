"""`Comparison`: what a sweep of paired trials says, over its seeds and over its settings."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any

from bnkit.experiments.metrics import ACCURACY, Metric
from bnkit.experiments.results import FORMAT, SIDES, Side, TrialResult
from bnkit.experiments.statistics import PairedRatio, SuccessRate, paired_ratio
from bnkit.experiments.verdict import Verdict, judge
from bnkit.notebooks import Shown
from bnkit.tables import frame_of, text_table


@dataclass(frozen=True)
class SideSummary:
    """One side of one setting over its seeds.

    `metric`, `lowest` and `highest` are the median and range of the final held-out metric of
    the runs that trained at all, diverged ones included; None where there are none.
    `steps_to_target` is the median over the seeds that were run, where a run that never reaches
    the target counts as infinitely long: None if half or more never do.
    """

    success: SuccessRate
    metric: float | None
    lowest: float | None
    highest: float | None
    test_metric: float | None
    steps_to_target: float | None
    milliseconds_per_step: float | None
    parameters: int
    buffers: int
    outcomes: Mapping[str, int]


@dataclass(frozen=True)
class Cell:
    """One setting of the sweep: both sides over the seeds, and the paired ratio of steps."""

    learning_rate: float
    activation: str
    plain: SideSummary
    batch_norm: SideSummary
    ratio: PairedRatio

    def side(self, side: Side) -> SideSummary:
        """Return the summary of this side."""
        return self.plain if side == "plain" else self.batch_norm


@dataclass(frozen=True)
class Recipe:
    """How the side with batch norm is made of the plain network.

    `network` is the plain one as it prints, `activation` the first of the sweep, which it has.
    `plan` holds of each layer its path, its kind, what was changed and why, and `code` is what
    users write to do the same; both are empty for a network that brings its own batch norm.
    """

    network: str
    activation: str = "as built"
    plan: tuple[tuple[str, str, str, str], ...] = ()
    code: str = ""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Recipe":
        """Return the recipe that `dataclasses.asdict` wrote down."""
        return cls(**{**fields, "plan": tuple(tuple(row) for row in fields["plan"])})


@dataclass(frozen=True)
class Comparison(Shown):
    """Every trial of a comparison with what decided it, and views of what they say together.

    `settings` and `environment` are plain names and values, for people to read; `command` repeats
    the run; `metric` is what was judged and `target` a value of it; `recipe` is None where it is
    unknown. `str()` is a table with the verdict below.
    """

    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    target: float
    command: str
    trials: tuple[TrialResult, ...]
    recipe: Recipe | None = None
    metric: Metric = ACCURACY

    @cached_property
    def learning_rates(self) -> tuple[float, ...]:
        """The learning rates of the sweep, ascending."""
        return tuple(sorted({trial.learning_rate for trial in self.trials}))

    @cached_property
    def activations(self) -> tuple[str, ...]:
        """The activations of the sweep, in the order in which they were asked for."""
        return tuple(dict.fromkeys(trial.activation for trial in self.trials))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the sweep, ascending."""
        return tuple(sorted({trial.seed for trial in self.trials}))

    def at(self, learning_rate: float, activation: str, side: Side) -> tuple[TrialResult, ...]:
        """Return the trials of one side of one setting, one a seed."""
        wanted = (learning_rate, activation, side)
        return tuple(t for t in self.trials if (t.learning_rate, t.activation, t.side) == wanted)

    def cell(self, learning_rate: float, activation: str) -> Cell:
        """Return the summary of one setting."""
        plain, batch_norm = (self.at(learning_rate, activation, side) for side in SIDES)
        steps = _pairs(plain, batch_norm, lambda t: t.steps_to(self.target, self.metric))
        return Cell(
            learning_rate,
            activation,
            plain=summarise(plain, self.target, self.metric),
            batch_norm=summarise(batch_norm, self.target, self.metric),
            ratio=paired_ratio(steps),
        )

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every setting of the sweep, by activation and then learning rate."""
        return tuple(self.cell(lr, a) for a in self.activations for lr in self.learning_rates)

    def largest_learning_rate(self, activation: str, side: Side) -> float | None:
        """Return the largest learning rate at which every seed trains, or None."""
        cells = [cell for cell in self.cells if cell.activation == activation]
        rates = [c.learning_rate for c in cells if _always_succeeds(c.side(side))]
        return max(rates, default=None)

    def best(self, side: Side, activation: str | None = None) -> Cell | None:
        """Return the setting with this side's best median metric, or None.

        Equal ones go to the setting that reaches the target in fewer steps.
        """
        cells = [cell for cell in self.cells if activation in (None, cell.activation)]
        ran = [cell for cell in cells if cell.side(side).metric is not None]
        return max(ran, key=lambda cell: _merit(cell.side(side), self.metric), default=None)

    def best_pairs(self, measure: Callable[[TrialResult], Any]) -> list[tuple[Any, Any]]:
        """Return `measure` of (plain, batch norm), seed by seed, each at its own best setting."""
        plain, batch_norm = (self._at_best(side) for side in SIDES)
        return _pairs(plain, batch_norm, measure)

    @cached_property
    def verdict(self) -> Verdict:
        """What the comparison answers, and the three measurements that it rests on."""
        tried = any(t.outcome in ("finished", "diverged") for t in self.trials)
        successes = self._all_pairs(lambda t: t.succeeds(self.target, self.metric)) if tried else []
        return judge(
            successes=successes,
            steps=self.best_pairs(lambda t: t.steps_to(self.target, self.metric)),
            metrics=self.best_pairs(lambda t: t.test_metric),
            metric=self.metric,
            slowdown=self.slowdown,
        )

    @cached_property
    def slowdown(self) -> float | None:
        """Median time of a step with batch norm divided by that without, pair by pair."""
        pairs = self._all_pairs(lambda t: t.milliseconds_per_step)
        ratios = [b / p for p, b in pairs if p > 0 and math.isfinite(b / p)]
        return median(ratios) if ratios else None

    def _all_pairs(self, measure: Callable[[TrialResult], Any]) -> list[tuple[Any, Any]]:
        plain, batch_norm = ([t for t in self.trials if t.side == side] for side in SIDES)
        return _pairs(
            plain, batch_norm, measure, by=lambda t: (t.learning_rate, t.activation, t.seed)
        )

    def _at_best(self, side: Side) -> tuple[TrialResult, ...]:
        cell = self.best(side)
        return self.at(cell.learning_rate, cell.activation, side) if cell else ()

    @cached_property
    def unfinished(self) -> tuple[TrialResult, ...]:
        """The trials that failed or were not run, whose absence a report must state."""
        return tuple(t for t in self.trials if t.outcome in ("failed", "not run"))

    def to_json(self) -> dict[str, Any]:
        """Return all numbers, trials and summaries alike, as plain lists, numbers and strings."""
        return {
            "format": FORMAT,
            "settings": dict(self.settings),
            "environment": dict(self.environment),
            "metric": asdict(self.metric),
            "target": self.target,
            "command": self.command,
            "recipe": None if self.recipe is None else asdict(self.recipe),
            "verdict": asdict(self.verdict),
            "cells": [asdict(cell) for cell in self.cells],
            "trials": [trial.to_json() for trial in self.trials],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Comparison":
        """Return the comparison whose `to_json` this is; the summaries are computed again.

        Raises ValueError for a document that another version wrote in another format.
        """
        written = document.get("format", 1)  # 0.1.0 wrote none
        if written != FORMAT:
            raise ValueError(
                f"these results have format {written}, and this bnkit reads {FORMAT}: use the "
                f"version that wrote them, or run the comparison again"
            )
        trials = tuple(TrialResult.from_json(trial) for trial in document["trials"])
        kept = ("settings", "environment", "target", "command")
        recipe = document["recipe"]
        return cls(
            **{name: document[name] for name in kept},
            trials=trials,
            recipe=None if recipe is None else Recipe.from_json(recipe),
            metric=Metric.from_json(document["metric"]),
        )

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row for each trial, its curve left out.

        Its columns are the fields of `TrialResult`, and of the trial `steps_to_target` and
        `milliseconds_per_step`. Raises MissingExtraError without bnkit[frames].
        """
        return frame_of(
            {
                **{name: value for name, value in trial.to_json().items() if name != "curve"},
                "steps_to_target": trial.steps_to(self.target, self.metric),
                "milliseconds_per_step": trial.milliseconds_per_step,
            }
            for trial in self.trials
        )

    def __str__(self) -> str:
        rows = [_row(cell, self.metric) for cell in self.cells]
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        legend = f"plain → batch norm, medians over {seeds}"
        parts = [
            legend,
            text_table(_columns(self.metric), rows),
            *_absences(self.unfinished),
            str(self.verdict),
        ]
        return "\n\n".join(parts)


def summarise(
    trials: Sequence[TrialResult], target: float, metric: Metric = ACCURACY
) -> SideSummary:
    """Return what the seeds of one side of one setting found."""
    ran = [t for t in trials if t.outcome != "not run"]
    ends = [t.metric for t in trials if t.metric is not None]
    tests = [t.test_metric for t in trials if t.test_metric is not None]
    times = [t.milliseconds_per_step for t in trials if t.steps]
    return SideSummary(
        success=SuccessRate(sum(t.succeeds(target, metric) for t in ran), len(ran)),
        metric=median(ends) if ends else None,
        lowest=min(ends, default=None),
        highest=max(ends, default=None),
        test_metric=median(tests) if tests else None,
        steps_to_target=_median_steps([t.steps_to(target, metric) for t in ran]),
        milliseconds_per_step=median(times) if times else None,
        parameters=max((t.parameters for t in trials), default=0),
        buffers=max((t.buffers for t in trials), default=0),
        outcomes=dict(Counter(t.outcome for t in trials)),
    )


# Two values in a column are of the plain network and of its twin.
def _columns(metric: Metric) -> Sequence[str]:
    measured = (metric.name, "trains", "steps to target")
    return ("activation", "learning rate", *measured, "ratio (95%)")


def _row(cell: Cell, metric: Metric) -> list[str]:
    sides = (cell.plain, cell.batch_norm)
    ends = ["none" if s.metric is None else metric.written(s.metric) for s in sides]
    steps = ["never" if s.steps_to_target is None else f"{s.steps_to_target:,.0f}" for s in sides]
    return [
        cell.activation,
        f"{cell.learning_rate:g}",
        " → ".join(ends),
        " → ".join(str(s.success) for s in sides),
        " → ".join(steps),
        str(cell.ratio) if cell.ratio.both else "",
    ]


def _absences(unfinished: Sequence[TrialResult]) -> list[str]:
    """Return a paragraph on the trials that failed or were not run, if there are any."""
    reasons = Counter(
        f"failed: {trial.reason}" if trial.outcome == "failed" else trial.reason or "not run"
        for trial in unfinished
    )
    lines = [f"{count} {'run' if count == 1 else 'runs'} {why}" for why, count in reasons.items()]
    return ["\n".join(lines)] if lines else []


def _median_steps(steps: Sequence[int | None]) -> float | None:
    counted = [math.inf if step is None else step for step in steps]
    middle = median(counted) if counted else math.inf
    return middle if math.isfinite(middle) else None


def _always_succeeds(side: SideSummary) -> bool:
    return 0 < side.success.runs == side.success.successes


def _merit(side: SideSummary, metric: Metric) -> tuple[float, float]:
    merit = -math.inf if side.metric is None else metric.merit(side.metric)
    return merit, -(math.inf if side.steps_to_target is None else side.steps_to_target)


def _pairs(
    plain: Iterable[TrialResult],
    batch_norm: Iterable[TrialResult],
    measure: Callable[[TrialResult], Any],
    by: Callable[[TrialResult], Any] = lambda trial: trial.seed,
) -> list[tuple[Any, Any]]:
    """Pair the trials of both sides that were run and agree in `by`."""
    # A pair of which one trial is missing says nothing about the difference.
    twins = {by(t): t for t in batch_norm if t.outcome != "not run"}
    pairs = [(t, twins[by(t)]) for t in plain if t.outcome != "not run" and by(t) in twins]
    return [(measure(t), measure(twin)) for t, twin in pairs]
