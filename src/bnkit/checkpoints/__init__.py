"""Checkpoints of changed models: `save` keeps the values and the plan, `load` applies both again.

A file is of safetensors (.safetensors; the plan is in its metadata) or of torch (.pt or .pth; a
dict of "state_dict" and "bnkit_plan"), and never needs pickled code.
"""

from bnkit.checkpoints.checkpoint import Checkpoint, load, read, save
from bnkit.checkpoints.formats import PLAN, format_of
from bnkit.checkpoints.plans import Document

__all__ = ["PLAN", "Checkpoint", "Document", "format_of", "load", "read", "save"]
