"""The figures that the page opens with: what batch norm changes, and what it costs."""

from collections.abc import Callable
from dataclasses import dataclass

from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.summary import Comparison, SideSummary
from bnkit.report.costs import step_time
from bnkit.report.words import NOTHING, milliseconds, number, percent, ratio, share, steps_to_target


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
        f"trains: ends finite, at {share(comparison.target)} held-out accuracy or above",
    )


def _steps(comparison: Comparison) -> KeyFigure:
    found = comparison.verdict.steps.ratio
    times = "" if found is None else f"; plain takes {ratio(found)} times as many"
    return KeyFigure(
        "Steps to the target",
        *_at_best(comparison, steps_to_target),
        f"medians at each side's best setting{times}",
    )


def _accuracy(comparison: Comparison) -> KeyFigure:
    gap = comparison.verdict.accuracy.difference
    points = "" if gap is None else f"; {100 * gap:+.2f} points with BN"
    return KeyFigure(
        "Test accuracy",
        *_at_best(comparison, lambda side: percent(side.test_accuracy)),
        f"medians at each side's best setting{points}",
    )


def _at_best(comparison: Comparison, written: Callable[[SideSummary], str]) -> tuple[str, str]:
    plain, batch_norm = (
        NOTHING if (cell := comparison.best(side)) is None else written(cell.side(side))
        for side in SIDES
    )
    return plain, batch_norm


def _largest_rates(comparison: Comparison) -> KeyFigure:
    plain, batch_norm = (_rates(comparison, side) for side in SIDES)
    over = ", from one activation to another" if len(comparison.activations) > 1 else ""
    note = f"the largest of the sweep at which every seed trains{over}"
    return KeyFigure("Largest learning rate", plain, batch_norm, note)


def _rates(comparison: Comparison, side: Side) -> str:
    rates = [comparison.largest_learning_rate(each, side) or 0 for each in comparison.activations]
    low, high = ("none" if rate == 0 else number(rate) for rate in (min(rates), max(rates)))
    return low if low == high else f"{low}–{high}"


def _time(comparison: Comparison) -> KeyFigure:
    plain, batch_norm = (milliseconds(step_time(comparison, side)) for side in SIDES)
    slowdown = comparison.slowdown
    price = "the price" if slowdown is None else f"the price: {ratio(slowdown)} times as long"
    return KeyFigure("Time per step (ms)", plain, batch_norm, price)
