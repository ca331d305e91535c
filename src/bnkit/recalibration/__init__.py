"""Statistics of batch norms, measured anew: recalibrate a model, adapt it to other data."""

from bnkit.recalibration.recalibration import (
    adapt,
    adapted,
    plan_adaptation,
    plan_recalibration,
    recalibrate,
    recalibrate_,
)
from bnkit.recalibration.shifts import LayerShift, Recalibration

__all__ = [
    "LayerShift",
    "Recalibration",
    "adapt",
    "adapted",
    "plan_adaptation",
    "plan_recalibration",
    "recalibrate",
    "recalibrate_",
]
