"""`Comparison`: what a sweep of paired trials says, over its seeds and over its settings."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any

from bnkit.experiments.criteria import Arrival, Measured
from bnkit.experiments.metrics import ACCURACY, Metric
from bnkit.experiments.results import FORMAT, SIDES, Side, TrialResult
from bnkit.experiments.statistics import PairedRatio, SuccessRate, paired_ratio
from bnkit.experiments.verdict import Verdict, judge
from bnkit.notebooks import Shown
from bnkit.tables import frame_of, several, text_table


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
    """One setting of the sweep: each side over the seeds, and the paired ratios of steps.

    `ratios` holds for each side but the first how many times as many steps the first takes.
    """

    learning_rate: float
    activation: str
    sides: Mapping[Side, SideSummary]
    ratios: Mapping[Side, PairedRatio]

    def side(self, side: Side) -> SideSummary:
        """Return the summary of this side."""
        return self.sides[side]


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
    unknown. With `own_target` the target is the best that the first side reached itself, and a run
    trains if it ends finite; else it must also end at the target. `margin` is the difference of
    the metric that counts as none, by default a point of percent, or a twentieth of what the first
    side gained while it was trained. The verdict's level is divided by the `looks` at it. `str()`
    is a table with the verdicts below.
    """

    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    target: float
    command: str
    trials: tuple[TrialResult, ...]
    recipe: Recipe | None = None
    metric: Metric = ACCURACY
    own_target: bool = False
    margin: float | None = None
    looks: int = 1

    @cached_property
    def sides(self) -> tuple[Side, ...]:
        """What is compared: the first, and the others, each of which is compared with it."""
        found = tuple(dict.fromkeys(trial.side for trial in self.trials))
        return found if len(found) > 1 else SIDES

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
        return tuple(self._by_setting.get((learning_rate, activation, side), ()))

    @cached_property
    def _by_setting(self) -> Mapping[tuple[float, str, Side], Sequence[TrialResult]]:
        found: dict[tuple[float, str, Side], list[TrialResult]] = {}
        for trial in self.trials:
            place = trial.learning_rate, trial.activation, trial.side
            found.setdefault(place, []).append(trial)
        return found

    def cell(self, learning_rate: float, activation: str) -> Cell:
        """Return the summary of one setting."""
        trials = {side: self.at(learning_rate, activation, side) for side in self.sides}
        first, *others = self.sides
        return Cell(
            learning_rate,
            activation,
            sides={
                side: summarise(of_side, self.target, self.metric, trains=self.trains)
                for side, of_side in trials.items()
            },
            ratios={
                other: paired_ratio(
                    _pairs(
                        trials[first],
                        trials[other],
                        lambda t: t.steps_to(self.target, self.metric),
                    )
                )
                for other in others
            },
        )

    def trains(self, trial: TrialResult) -> bool:
        """Return whether a run counts as one that trains."""
        if self.own_target:
            return trial.outcome == "finished"
        return trial.succeeds(self.target, self.metric)

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
        cells = (cell for cell in self.ranked(side) if activation in (None, cell.activation))
        return next(cells, None)

    def ranked(self, side: Side) -> list[Cell]:
        """Return the settings at which this side has a metric, the best first, as `best` has it."""
        ran = [cell for cell in self.cells if cell.side(side).metric is not None]
        return sorted(ran, key=lambda cell: _merit(cell.side(side), self.metric), reverse=True)

    def best_pairs(
        self, measure: Callable[[TrialResult], Any], other: Side | None = None
    ) -> list[tuple[Any, Any]]:
        """Return `measure` of (first, other), seed by seed, each at its own best setting.

        `other` is the second side where none is named.
        """
        first, second = self.sides[0], other or self.sides[1]
        return _pairs(self._at_best(first), self._at_best(second), measure)

    @cached_property
    def verdicts(self) -> Mapping[Side, Verdict]:
        """The verdict on each side but the first."""
        judged = judge([self._measured(other) for other in self.sides[1:]], looks=self.looks)
        return {verdict.other: verdict for verdict in judged}

    @property
    def verdict(self) -> Verdict:
        """The verdict on the second side, which is batch norm unless other sides were named."""
        return self.verdicts[self.sides[1]]

    @property
    def settled(self) -> bool:
        """Whether each verdict says more than "not shown"."""
        undecided = ("not shown", "nothing to compare")
        return all(verdict.answer not in undecided for verdict in self.verdicts.values())

    @property
    def slowdown(self) -> float | None:
        """Median time of a step of the second side divided by that of the first, pair by pair."""
        return self.slowdown_of(self.sides[1])

    def slowdown_of(self, other: Side) -> float | None:
        """Return the median time of a step of this side divided by that of the first."""
        pairs = self._all_pairs(lambda t: (t.machine, t.milliseconds_per_step), other)
        times = [(a, b) for (one, a), (another, b) in pairs if one == another]
        ratios = [b / a for a, b in times if a > 0 and math.isfinite(b / a)]
        return median(ratios) if ratios else None

    @cached_property
    def machines(self) -> tuple[Mapping[str, str], ...]:
        """The machines that the trials ran on, each once; times are compared only within one."""
        return _machines_of(self.trials)

    @property
    def unlike_machines(self) -> str:
        """The sentence that the runs are of several machines; "" where they are of one."""
        if len(self.machines) < 2:
            return ""
        told = ("processor", "threads", "torch")
        known = [[machine.get(name, "unknown") for name in told] for machine in self.machines]
        kinds = sorted({f"{p}, {threads} threads, torch {torch}" for p, threads, torch in known})
        hosts = several(len({machine.get("host") for machine in self.machines}), "host")
        return (
            f"The runs are of {hosts} ({'; '.join(kinds)}): times are compared only within pairs "
            f"of one machine."
        )

    @cached_property
    def quality_margin(self) -> float:
        """The difference of the metric that counts as none."""
        if self.margin is not None:
            return self.margin
        if self.metric.percent:
            return 0.01
        curves = [trial.curve.metric for trial in self._at_best(self.sides[0])]
        ends = [(known[0], known[-1]) for curve in curves if (known := _known(curve))]
        if not ends:
            return 0.0
        began, ended = (median(values) for values in zip(*ends, strict=True))
        return float(abs(ended - began or ended)) / 20

    @property
    def notes(self) -> tuple[str, ...]:
        """What readers of the verdict should know: uneven runs, moving averages that lag."""
        return *self._uneven(), *self._lagging()

    def _uneven(self) -> list[str]:
        """Return a paragraph on each side whose runs end at other steps than the first's."""
        found = []
        for other in self.sides[1:]:
            ends = self._all_pairs(lambda t: t.steps if t.outcome == "finished" else None, other)
            known = [(a, b) for a, b in ends if a is not None and b is not None]
            if unlike := [(a, b) for a, b in known if a != b]:
                a, b = (median(steps) for steps in zip(*unlike, strict=True))
                found.append(
                    f"{len(unlike)} of {several(len(known), 'pair')} of runs end at other steps, "
                    f"{self.sides[0]} at {a:,.0f} and {other} at {b:,.0f} (medians of these): a "
                    f"side that is trained for longer may be better for that alone."
                )
        return found

    def _lagging(self) -> list[str]:
        """Return a paragraph where the running averages of a side hide what it has learned.

        That is where, at its best setting, the median of the last metric is better by more than the
        margin when the mini-batches' own statistics are used.
        """
        found = []
        for side in self.sides:
            ends = [
                (trial.curve.metric[-1], trial.curve.training_mode_metric[-1])
                for trial in self._at_best(side)
                if trial.curve.training_mode_metric
            ]
            known = [(a, b) for a, b in ends if a is not None and b is not None]
            if not known:
                continue
            usual, own = (median(values) for values in zip(*known, strict=True))
            if self.metric.merit(own) - self.metric.merit(usual) > self.quality_margin:
                found.append(
                    f"By the statistics of the mini-batches {side} ends at "
                    f"{self.metric.written(own)}, and at {self.metric.written(usual)} by its "
                    f"moving averages, which lag: `recalibrate` measures them anew."
                )
        return found

    @property
    def goal(self) -> str:
        """The target with its metric, in words."""
        if math.isnan(self.target):
            return f"the best of {self.sides[0]}, which is unknown"
        value = self.metric.written if self.own_target else self.metric.chosen
        named = f"{value(self.target)} held-out {self.metric.name}"
        return f"{named} (the best of {self.sides[0]})" if self.own_target else named

    def _measured(self, other: Side) -> Measured:
        tried = any(t.outcome in ("finished", "diverged") for t in self.trials)
        trained: dict[int, list[tuple[bool, bool]]] = {}
        pairs = self._all_pairs(lambda t: (t.seed, self.trains(t)), other) if tried else []
        for (seed, first), (_, second) in pairs:
            trained.setdefault(seed, []).append((first, second))
        return Measured(
            first=self.sides[0],
            other=other,
            runs=[len(runs) for runs in trained.values()],
            trained=[(sum(a for a, _ in r), sum(b for _, b in r)) for r in trained.values()],
            arrivals=[
                (first, second)
                if one == another
                else (first._replace(seconds=math.nan), second._replace(seconds=math.nan))
                for (one, first), (another, second) in self.best_pairs(
                    lambda trial: (trial.machine, self._arrival(trial)), other
                )
            ],
            values=self.best_pairs(lambda t: t.test_metric, other),
            metric=self.metric,
            target=self.goal,
            margin=self.quality_margin,
            slowdown=self.slowdown_of(other),
        )

    def _arrival(self, trial: TrialResult) -> Arrival:
        reached, curve = trial.steps_to(self.target, self.metric), trial.curve.steps
        step = self._longest if reached is None else reached
        seconds = trial.milliseconds_per_step * step / 1000
        if reached is None:
            return Arrival(step, reached=False, seconds=seconds)
        before = max((each for each in curve if each < reached), default=0)
        return Arrival(step, before, seconds=seconds)

    @cached_property
    def _longest(self) -> int:
        """How many steps the longest run has."""
        return max((trial.curve.steps[-1] for trial in self.trials if trial.curve.steps), default=1)

    def _all_pairs(
        self, measure: Callable[[TrialResult], Any], other: Side
    ) -> list[tuple[Any, Any]]:
        first, second = (
            [trial for trial in self.trials if trial.side == side]
            for side in (self.sides[0], other)
        )
        return _pairs(first, second, measure, by=lambda t: (t.learning_rate, t.activation, t.seed))

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
            "target": self.target if math.isfinite(self.target) else None,
            "command": self.command,
            "recipe": None if self.recipe is None else asdict(self.recipe),
            "own_target": self.own_target,
            "margin": self.margin,
            "looks": self.looks,
            "sides": list(self.sides),
            "verdicts": {side: asdict(verdict) for side, verdict in self.verdicts.items()},
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
        kept = ("settings", "environment", "command", "own_target", "margin", "looks")
        recipe = document["recipe"]
        return cls(
            **{name: document[name] for name in kept},
            target=math.nan if document["target"] is None else document["target"],
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
        several_rows = len(self.sides) > 2
        rows = [row for cell in self.cells for row in _rows(cell, self.metric, several_rows)]
        legend = f"{' → '.join(self.sides)}, medians over {several(len(self.seeds), 'seed')}"
        columns = [
            *("activation", "learning rate", *(["side"] if several_rows else [])),
            *(self.metric.name, "trains", "steps to target", "ratio (95%)"),
        ]
        parts = [
            legend,
            text_table(columns, rows),
            *_absences(self.unfinished),
            *filter(None, [self.unlike_machines]),
            *self.notes,
            *map(str, self.verdicts.values()),
        ]
        return "\n\n".join(parts)


def own_best(trials: Sequence[TrialResult], metric: Metric = ACCURACY) -> float:
    """Return the best median over the seeds that the first side reaches, at any setting and step.

    NaN where it has no value.
    """
    settings: dict[tuple[float, str], list[TrialResult]] = {}
    for trial in trials:
        if trial.side == trials[0].side and trial.outcome != "not run":
            settings.setdefault((trial.learning_rate, trial.activation), []).append(trial)
    medians = []
    for runs in settings.values():
        steps: dict[int, list[float]] = {}
        for run in runs:
            for step, value in zip(run.curve.steps, run.curve.metric, strict=True):
                if value is not None and math.isfinite(value):
                    steps.setdefault(step, []).append(value)
        # A step that most runs never saw has the median of the few that are left.
        medians += [median(v) for v in steps.values() if 2 * len(v) > len(runs)]
    return max(medians, key=metric.merit, default=math.nan)


def summarise(
    trials: Sequence[TrialResult],
    target: float,
    metric: Metric = ACCURACY,
    *,
    trains: Callable[[TrialResult], bool] | None = None,
) -> SideSummary:
    """Return what the seeds of one side of one setting found.

    A run counts as one that trains where `trains` says so, by default if it ends at the target.
    """
    succeeds = trains or (lambda trial: trial.succeeds(target, metric))
    ran = [t for t in trials if t.outcome != "not run"]
    ends = [t.metric for t in trials if t.metric is not None]
    tests = [t.test_metric for t in trials if t.test_metric is not None]
    # Times of unlike machines have no median.
    timed = trials if len(_machines_of(trials)) < 2 else ()
    times = [trial.milliseconds_per_step for trial in timed if trial.steps]
    return SideSummary(
        success=SuccessRate(sum(map(succeeds, ran)), len(ran)),
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


def _rows(cell: Cell, metric: Metric, several_rows: bool) -> list[list[str]]:
    """Return the rows of a setting: one with all sides in each column, or one for each side."""
    setting = [cell.activation, f"{cell.learning_rate:g}"]
    ratios = {side: str(ratio) if ratio.both else "" for side, ratio in cell.ratios.items()}
    sides = {side: _written(found, metric) for side, found in cell.sides.items()}
    if several_rows:
        return [[*setting, side, *written, ratios.get(side, "")] for side, written in sides.items()]
    columns = (" → ".join(values) for values in zip(*sides.values(), strict=True))
    return [[*setting, *columns, *ratios.values()]]


def _written(side: SideSummary, metric: Metric) -> tuple[str, str, str]:
    if not side.success.runs:
        return "none", "not run", "none"
    end = "none" if side.metric is None else metric.written(side.metric)
    steps = "never" if side.steps_to_target is None else f"{side.steps_to_target:,.0f}"
    return end, str(side.success), steps


def _machines_of(trials: Iterable[TrialResult]) -> tuple[Mapping[str, str], ...]:
    found = {tuple(sorted(t.machine.items())): t.machine for t in trials if t.machine}
    return tuple(found.values())


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


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _pairs(
    first: Iterable[TrialResult],
    other: Iterable[TrialResult],
    measure: Callable[[TrialResult], Any],
    by: Callable[[TrialResult], Any] = lambda trial: trial.seed,
) -> list[tuple[Any, Any]]:
    """Pair the trials of both sides that were run and agree in `by`."""
    # A pair of which one trial is missing says nothing about the difference.
    twins = {by(t): t for t in other if t.outcome != "not run"}
    pairs = [(t, twins[by(t)]) for t in first if t.outcome != "not run" and by(t) in twins]
    return [(measure(t), measure(twin)) for t, twin in pairs]
