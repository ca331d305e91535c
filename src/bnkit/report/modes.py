"""Both accuracies of a network with batch norm: as it is used, and as it trains."""

from dataclasses import dataclass
from statistics import median

from bnkit.experiments.results import SIDES, Curve, Side
from bnkit.experiments.summary import Cell, Comparison


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
    """Return both accuracies of every setting and side that measured them.

    A plain side whose accuracies never differ is left out.
    """
    everything = (_at(comparison, cell, side) for cell in comparison.cells for side in SIDES)
    return tuple(row for row in everything if row and (row.widest or row.side == "batch norm"))


def _at(comparison: Comparison, cell: Cell, side: Side) -> TwoModes | None:
    trials = comparison.at(cell.learning_rate, cell.activation, side)
    curves = [trial.curve for trial in trials if trial.curve.training_mode_accuracy]
    if not curves:
        return None
    return TwoModes(
        cell.learning_rate,
        cell.activation,
        side,
        running=median(curve.accuracy[-1] for curve in curves),
        batch=median(curve.training_mode_accuracy[-1] for curve in curves),
        widest=max(_widest(curve) for curve in curves),
    )


def _widest(curve: Curve) -> float:
    pairs = zip(curve.accuracy, curve.training_mode_accuracy, strict=True)
    return max(abs(batch - running) for running, batch in pairs)
