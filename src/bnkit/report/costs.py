"""What each side costs: parameters, buffers, and the time of a training step."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.summary import Comparison
from bnkit.report.words import milliseconds


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
            milliseconds(step_time(comparison, side)),
        )
        for side in SIDES
    )


def _range(counts: Sequence[int]) -> str:
    known = [count for count in counts if count]
    low, high = min(known, default=0), max(known, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def step_time(comparison: Comparison, side: Side) -> float | None:
    """Return the time of a step in milliseconds, median over the settings, or None."""
    times = [cell.side(side).milliseconds_per_step for cell in comparison.cells]
    known = [time for time in times if time is not None]
    return median(known) if known else None
