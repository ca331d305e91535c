"""The numbers on the page of a comparison: at the top, in its tables, and what is missing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bnkit.experiments.metrics import Metric
from bnkit.experiments.results import SIDES, Curve, Side, TrialResult
from bnkit.experiments.statistics import PairedDifference
from bnkit.experiments.summary import Cell, Comparison, SideSummary
from bnkit.experiments.verdict import LEVEL
from bnkit.report.formatting import (
    NOTHING,
    after_comma,
    measured,
    milliseconds,
    number,
    ratio,
    steps_to_target,
)


@dataclass(frozen=True)
class KeyNumber:
    """One quantity, without and with batch norm, and what the two mean together."""

    name: str
    note: str
    plain: str
    batch_norm: str


def key_numbers(comparison: Comparison) -> tuple[KeyNumber, ...]:
    """Return the numbers at the top of the page: what batch norm changes, and what it costs."""
    verdict, metric, slowdown = comparison.verdict, comparison.metric, comparison.slowdown
    target = metric.chosen(comparison.target)
    times, gap = verdict.steps.ratio, verdict.quality.difference
    fewer = "" if times is None else f"; plain takes {ratio(times)} times as many"
    points = "" if gap is None else f"; {metric.change(gap)}{metric.unit} with BN"
    over = ", with its best activation" if len(comparison.activations) > 1 else ""
    return (
        KeyNumber(
            "Runs that train",
            f"trains: ends finite, at {target} held-out {metric.name} {metric.to_reach}",
            f"{verdict.trained_plain}/{verdict.pairs}",
            f"{verdict.trained_batch_norm}/{verdict.pairs}",
        ),
        KeyNumber(
            "Steps to the target",
            f"medians at each side's best setting{fewer}",
            *_at_best(comparison, steps_to_target),
        ),
        KeyNumber(
            f"Test {metric.name}",
            f"medians at each side's best setting{points}",
            *_at_best(comparison, lambda side: measured(side.test_metric, metric)),
        ),
        KeyNumber(
            "Largest learning rate",
            f"of the sweep, at which every seed trains{over}",
            *(_largest_rate(comparison, side) for side in SIDES),
        ),
        KeyNumber(
            "Time per step (ms)",
            "the price" + ("" if slowdown is None else f": {ratio(slowdown)} times as long"),
            *(milliseconds(_step_time(comparison, side)) for side in SIDES),
        ),
    )


def _at_best(comparison: Comparison, written: Callable[[SideSummary], str]) -> Iterable[str]:
    for side in SIDES:
        cell = comparison.best(side)
        yield NOTHING if cell is None else written(cell.side(side))


def _largest_rate(comparison: Comparison, side: Side) -> str:
    cell = comparison.best(side)
    rate = None if cell is None else comparison.largest_learning_rate(cell.activation, side)
    return "none" if rate is None else number(rate)


def _step_time(comparison: Comparison, side: Side) -> float | None:
    """The time of a step in milliseconds, median over the settings."""
    times = [cell.side(side).milliseconds_per_step for cell in comparison.cells]
    known = [time for time in times if time is not None]
    return median(known) if known else None


@dataclass(frozen=True)
class Cost:
    """What one side costs: parameters and buffers (ranges over the settings), time of a step."""

    side: Side
    parameters: str
    buffers: str
    time: str


def costs(comparison: Comparison) -> tuple[Cost, ...]:
    """Return the costs of both sides."""
    return tuple(
        Cost(
            side,
            _range([cell.side(side).parameters for cell in comparison.cells]),
            _range([cell.side(side).buffers for cell in comparison.cells]),
            milliseconds(_step_time(comparison, side)),
        )
        for side in SIDES
    )


def _range(counts: Sequence[int]) -> str:
    known = [count for count in counts if count]
    low, high = min(known, default=0), max(known, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


@dataclass(frozen=True)
class Criterion:
    """One of the verdict's three measurements: what it is, what came out, whom it speaks for."""

    name: str
    measured: str
    result: str
    speaks: str


def criteria(comparison: Comparison) -> tuple[Criterion, ...]:
    """Return the criteria of the verdict (see `experiments.verdict.Verdict`) with their results."""
    v = comparison.verdict
    gap, metric = v.quality, comparison.metric
    return (
        Criterion(
            "Reliability",
            "pairs in which only one side trains, by an exact sign test; counts where p < "
            f"{LEVEL:g}",
            f"only batch norm: {v.only_batch_norm}, only plain: {v.only_plain}, p = "
            f"{v.p_value:.2g}",
            _speaks(v.only_batch_norm - v.only_plain, counts=v.p_value < LEVEL),
        ),
        Criterion(
            "Speed",
            "paired ratio of steps to the target, each side at its own best setting; counts where "
            "the 95% interval excludes 1",
            str(v.steps),
            _speaks((v.steps.ratio or 1) - 1, counts=v.steps.excludes_one),
        ),
        Criterion(
            "Quality",
            f"paired difference of test {metric.name}, each side at its own best setting; counts "
            "where the 95% interval excludes 0",
            _change(gap, metric),
            _speaks(metric.merit(gap.difference or 0), counts=gap.excludes_zero),
        ),
    )


def _change(gap: PairedDifference, metric: Metric) -> str:
    if gap.difference is None:
        return f"no pair with a test {metric.name} on both sides"
    interval = ""
    if gap.low is not None and gap.high is not None:
        interval = f" ({metric.change(gap.low)} to {metric.change(gap.high)})"
    return f"{metric.change(gap.difference)}{metric.unit}{interval}"


def _speaks(amount: float, *, counts: bool) -> str:
    if not counts or not amount:
        return "undecided"
    return "for batch norm" if amount > 0 else "against batch norm"


@dataclass(frozen=True)
class TwoModes:
    """Final metric with running statistics and with those of the batch, median over seeds.

    `widest` is the largest difference at any step of any seed.
    """

    cell: Cell
    side: Side
    running: float
    batch: float
    widest: float


def two_modes(comparison: Comparison) -> tuple[TwoModes, ...]:
    """Return both values of every setting and side that measured them.

    A plain side whose values never differ is left out.
    """
    everything = (_modes_at(comparison, cell, side) for cell in comparison.cells for side in SIDES)
    return tuple(row for row in everything if row and (row.widest or row.side == "batch norm"))


def _modes_at(comparison: Comparison, cell: Cell, side: Side) -> TwoModes | None:
    trials = comparison.at(cell.learning_rate, cell.activation, side)
    pairs = [_finite_pairs(trial.curve) for trial in trials if trial.curve.training_mode_metric]
    pairs = [each for each in pairs if each]
    if not pairs:
        return None
    running, batch = (median(each[-1][mode] for each in pairs) for mode in (0, 1))
    widest = max(abs(own - usual) for each in pairs for usual, own in each)
    return TwoModes(cell, side, running, batch, widest)


def _finite_pairs(curve: Curve) -> list[tuple[float, float]]:
    pairs = zip(curve.metric, curve.training_mode_metric, strict=True)
    return [(usual, own) for usual, own in pairs if usual is not None and own is not None]


def missing_runs(trials: Iterable[TrialResult]) -> dict[tuple[str, str], list[str]]:
    """Return the unfinished trials by outcome and reason, in the order of their appearance."""
    runs: dict[tuple[str, str], list[str]] = {}
    for trial in trials:
        rate, activation = number(trial.learning_rate), after_comma(trial.activation)
        run = f"{trial.side}{activation}, learning rate {rate}, seed {trial.seed}"
        runs.setdefault((trial.outcome, trial.reason), []).append(run)
    return runs
