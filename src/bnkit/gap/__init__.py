"""What parts a model in eval mode from itself in training, and in which batch norms."""

from bnkit.gap.explaining import explain_gap
from bnkit.gap.record import Gap, LayerGap

__all__ = ["Gap", "LayerGap", "explain_gap"]
