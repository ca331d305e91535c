"""Checkpoints of changed models: `save` keeps the values and the plan, `load` applies both again.

A file is of safetensors (.safetensors; the plan is in its metadata) or of torch (.pt or .pth; a
dict of "state_dict" and "bnkit_plan"), and never needs pickled code.
"""

from bnkit.checkpoints.formats import format_of
from bnkit.checkpoints.loading import Checkpoint, load, read
from bnkit.checkpoints.plans import PLAN, Document
from bnkit.checkpoints.saving import save

__all__ = ["PLAN", "Checkpoint", "Document", "format_of", "load", "read", "save"]
