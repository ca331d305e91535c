"""Both accuracies of a network with batch norm: as it is used, and as it trains."""

from dataclasses import dataclass
from statistics import median

from bnkit.lab.records import SIDES, Side
from bnkit.lab.summary import Comparison


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
