"""What the page says beside its charts: key figures, gaps, costs, and the verdict's criteria."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bnkit.lab.records import SIDES, Side, TrialResult
from bnkit.lab.summary import Comparison
from bnkit.lab.verdict import LEVEL
from bnkit.report.words import NOTHING, heading, milliseconds, number, percent


@dataclass(frozen=True)
class KeyFigure:
    """One quantity, without and with batch norm, and what the two mean together."""

    name: str
    plain: str
    batch_norm: str
    note: str


def key_figures(comparison: Comparison) -> tuple[KeyFigure, ...]:
    """Return the figures that the page opens with."""
    return (
        _training_runs(comparison),
        _steps(comparison),
        _accuracy(comparison),
        _largest_rates(comparison),
        _time(comparison),
    )


def _training_runs(comparison: Comparison) -> KeyFigure:
    verdict = comparison.verdict
    return KeyFigure(
        "Runs that train",
        f"{verdict.trained_plain}/{verdict.pairs}",
        f"{verdict.trained_batch_norm}/{verdict.pairs}",
        f"trains: ends finite, at {100 * comparison.target:g}% held-out accuracy or above",
    )


def _steps(comparison: Comparison) -> KeyFigure:
    ratio = comparison.verdict.steps
    plain, batch_norm = (
        number(cell.side(side).steps_to_target) if (cell := comparison.best(side)) else NOTHING
        for side in SIDES
    )
    times = f"{ratio.ratio:.2g} times as many without" if ratio.ratio else str(ratio)
    note = f"each at its best setting, median; {times}"
    return KeyFigure("Steps to the target", plain, batch_norm, note)


def _accuracy(comparison: Comparison) -> KeyFigure:
    gap = comparison.verdict.accuracy.difference
    plain, batch_norm = (
        percent(cell.side(side).test_accuracy) if (cell := comparison.best(side)) else NOTHING
        for side in SIDES
    )
    mean = "" if gap is None else f"; {100 * gap:+.2f} points with batch norm, on average"
    return KeyFigure(
        "Test accuracy", plain, batch_norm, f"each at its best setting, median{mean}"
    )


def _largest_rates(comparison: Comparison) -> KeyFigure:
    plain, batch_norm = (
        number(max((rate for a in comparison.activations
                    if (rate := comparison.largest_learning_rate(a, side))), default=None))
        for side in SIDES
    )  # fmt: skip
    note = "the largest of the sweep at which every seed trains"
    return KeyFigure("Largest learning rate", plain, batch_norm, note)


def _time(comparison: Comparison) -> KeyFigure:
    plain, batch_norm = (milliseconds(_step_time(comparison, side)) for side in SIDES)
    slowdown = comparison.slowdown
    price = "the price" if slowdown is None else f"the price: {slowdown:.2f} times as long"
    return KeyFigure("Time per training step", plain, batch_norm, price)


@dataclass(frozen=True)
class Gap:
    """Runs that are missing, or broke off, for one reason."""

    outcome: str
    reason: str
    runs: tuple[str, ...]


def gaps(trials: Iterable[TrialResult]) -> tuple[Gap, ...]:
    """Return the trials, one gap for each outcome and reason, in the order of their appearance."""
    runs: dict[tuple[str, str], list[str]] = {}
    for trial in trials:
        runs.setdefault((trial.outcome, trial.reason), []).append(_named(trial))
    return tuple(Gap(*cause, tuple(names)) for cause, names in runs.items())


def _named(trial: TrialResult) -> str:
    activation = f", {heading(trial.activation)}" if heading(trial.activation) else ""
    rate = number(trial.learning_rate)
    return f"{trial.side}{activation}, learning rate {rate}, seed {trial.seed}"


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


def _step_time(comparison: Comparison, side: Side) -> float | None:
    times = [cell.side(side).milliseconds_per_step for cell in comparison.cells]
    known = [time for time in times if time is not None]
    return median(known) if known else None


@dataclass(frozen=True)
class TwoModes:
    """Final accuracy with running statistics and with those of the batch, median over seeds.

    `widest` is the largest difference at any step of any seed.
    """

    learning_rate: float
    activation: str
    side: Side
    running: float
    batch: float
    widest: float


def two_modes(comparison: Comparison) -> tuple[TwoModes, ...]:
    """Return both accuracies of every setting and side that measured them."""
    found = (
        (cell, side, [t.curve for t in comparison.at(cell.learning_rate, cell.activation, side)
                      if t.curve.training_mode_accuracy])
        for cell in comparison.cells
        for side in SIDES
    )  # fmt: skip
    return tuple(
        TwoModes(
            cell.learning_rate,
            cell.activation,
            side,
            running=median(curve.accuracy[-1] for curve in curves),
            batch=median(curve.training_mode_accuracy[-1] for curve in curves),
            widest=max(
                abs(b - r)
                for curve in curves
                for r, b in zip(curve.accuracy, curve.training_mode_accuracy, strict=True)
            ),
        )
        for cell, side, curves in found
        if curves
    )


@dataclass(frozen=True)
class Criterion:
    """One of the verdict's three measurements: what it is, what came out, whom it speaks for."""

    name: str
    measured: str
    result: str
    speaks: str


def criteria(comparison: Comparison) -> tuple[Criterion, ...]:
    """Return the criteria of the verdict (see `bnkit.lab.verdict.Verdict`) with their results."""
    v = comparison.verdict
    gap = v.accuracy
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
            "paired difference of test accuracy, each side at its own best setting; counts where "
            "the 95% interval excludes 0",
            _points(gap.difference, gap.low, gap.high),
            _speaks(gap.difference or 0, counts=gap.excludes_zero),
        ),
    )


def _points(difference: float | None, low: float | None, high: float | None) -> str:
    if difference is None:
        return "no pair with a test accuracy on both sides"
    interval = "" if low is None or high is None else f" ({100 * low:+.2f} to {100 * high:+.2f})"
    return f"{100 * difference:+.2f} points{interval}"


def _speaks(amount: float, *, counts: bool) -> str:
    if not counts or not amount:
        return "undecided"
    return "for batch norm" if amount > 0 else "against batch norm"
