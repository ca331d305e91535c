"""Batch norm folded into the layer before it, or the layer after it, exactly."""

from bnkit.surgery.folding.application import fold_away
from bnkit.surgery.folding.folding import fold, plan_folding

__all__ = ["fold", "fold_away", "plan_folding"]
