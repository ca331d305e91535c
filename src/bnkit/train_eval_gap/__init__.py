"""How far eval mode differs from training mode, and which batch norms cause it."""

from bnkit.train_eval_gap.both_modes import explain_gap
from bnkit.train_eval_gap.gap import Gap, LayerGap

__all__ = ["Gap", "LayerGap", "explain_gap"]
