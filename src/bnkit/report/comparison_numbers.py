"""The numbers on the page of a comparison: at the top, in its tables, and what is missing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bnkit.experiments.criteria import Criterion, about
from bnkit.experiments.results import Curve, Side, TrialResult
from bnkit.experiments.summary import Cell, Comparison, SideSummary
from bnkit.experiments.verdict import Verdict
from bnkit.report.formatting import (
    NOTHING,
    after_comma,
    measured,
    milliseconds,
    number,
    ratio,
    short_name,
    steps_to_target,
)


@dataclass(frozen=True)
class KeyNumber:
    """One quantity of each side, and what they mean together."""

    name: str
    note: str
    values: Mapping[Side, str]


def key_numbers(comparison: Comparison) -> tuple[KeyNumber, ...]:
    """Return the numbers at the top of the page: what batch norm changes, and what it costs."""
    metric, sides = comparison.metric, comparison.sides
    trains = "" if comparison.own_target else f", at {comparison.goal} {metric.to_reach}"
    over = ", with its best activation" if len(comparison.activations) > 1 else ""
    return (
        KeyNumber("Runs that train", f"trains: ends finite{trains}", _trained(comparison)),
        KeyNumber(
            "Steps to the target",
            f"medians at each side's best setting{_beside(comparison, _times)}",
            _at_best(comparison, steps_to_target),
        ),
        KeyNumber(
            f"Test {metric.name}",
            f"medians at each side's best setting{_beside(comparison, _difference)}",
            _at_best(comparison, lambda side: measured(side.test_metric, metric)),
        ),
        KeyNumber(
            "Largest learning rate",
            f"of the sweep, at which every seed trains{over}",
            {side: _largest_rate(comparison, side) for side in sides},
        ),
        KeyNumber(
            "Time per step",
            f"{sides[0]} in milliseconds, and multiples of it: {PAIRWISE}",
            {side: _time(comparison, side) for side in sides},
        ),
    )


def _beside(comparison: Comparison, told: Callable[[Comparison, Verdict], str]) -> str:
    """Return what is told of two sides; of more there is no room for it."""
    return told(comparison, comparison.verdict) if len(comparison.sides) == 2 else ""


def _times(_: Comparison, verdict: Verdict) -> str:
    # That of the verdict's sentence, in which runs that never get there count, too.
    times = verdict.finding("speed").estimate if verdict.findings else None
    return "" if times is None else f"; {verdict.first} takes about {about(times)} times as many"


def _difference(comparison: Comparison, verdict: Verdict) -> str:
    if not verdict.findings or (gap := verdict.finding("quality").estimate) is None:
        return ""
    metric = comparison.metric
    return f"; {metric.change(gap)}{metric.unit} with {short_name(verdict.other)}"


def _trained(comparison: Comparison) -> dict[Side, str]:
    """How many runs of each side train: of those that both sides of a pair have, for two sides."""
    if len(comparison.sides) == 2:
        verdict = comparison.verdict
        counts = zip(comparison.sides, verdict.trained, strict=True)
        return {side: f"{trained}/{verdict.pairs}" for side, trained in counts}
    rates = {
        side: [cell.side(side).success for cell in comparison.cells] for side in comparison.sides
    }
    return {
        side: f"{sum(r.successes for r in of_side)}/{sum(r.runs for r in of_side)}"
        for side, of_side in rates.items()
    }


def _at_best(comparison: Comparison, written: Callable[[SideSummary], str]) -> dict[Side, str]:
    best = {side: comparison.best(side) for side in comparison.sides}
    return {
        side: NOTHING if cell is None else written(cell.side(side)) for side, cell in best.items()
    }


def _largest_rate(comparison: Comparison, side: Side) -> str:
    cell = comparison.best(side)
    rate = None if cell is None else comparison.largest_learning_rate(cell.activation, side)
    return "none" if rate is None else number(rate)


PAIRWISE = "the median over the pairs of runs"


def _time(comparison: Comparison, side: Side) -> str:
    """The time of a step: of the first side itself, of another how many times as long it takes.

    Medians of both sides would not show that: each may be of another setting, at another hour.
    """
    if side != comparison.sides[0]:
        times = comparison.slowdown_of(side)
        return NOTHING if times is None else f"{ratio(times)} ×"
    if len(comparison.machines) > 1:
        return NOTHING
    every = [cell.side(side).milliseconds_per_step for cell in comparison.cells]
    known = [time for time in every if time is not None]
    return f"{milliseconds(median(known))} ms" if known else NOTHING


@dataclass(frozen=True)
class Cost:
    """What one side costs: parameters and buffers (ranges over the settings), time of a step.

    The time is that of the first side, and of another how many times as long it takes.
    """

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
            _time(comparison, side),
        )
        for side in comparison.sides
    )


def _range(counts: Sequence[int]) -> str:
    known = [count for count in counts if count]
    low, high = min(known, default=0), max(known, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


METHODS: Mapping[Criterion, str] = {
    "reliability": "for each seed, how many runs train; an exact sign test over the seeds",
    "speed": (
        "how many times as many steps to the target, each side at its own best setting; a paired "
        "t-test of the logarithm over the seeds"
    ),
    "quality": (
        "the difference of the metric on test data, each side at its own best setting; a paired "
        "t-test over the seeds"
    ),
}


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
    everything = (
        _modes_at(comparison, cell, side) for cell in comparison.cells for side in comparison.sides
    )
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
