"""How the verdict was reached: its three criteria, what was measured, and whom each speaks for."""

from dataclasses import dataclass

from bnkit.experiments.summary import Comparison
from bnkit.experiments.verdict import LEVEL


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
