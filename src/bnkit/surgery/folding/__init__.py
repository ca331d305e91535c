"""Batch norm folded into the layer before it, or the layer after it, exactly."""

from bnkit.surgery.folding.folding import fold, fold_away, fold_pair, plan_folding

__all__ = ["fold", "fold_away", "fold_pair", "plan_folding"]
