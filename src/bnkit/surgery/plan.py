"""`Plan`: what a change to a model does to each layer, what it leaves alone, and why."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from bnkit.dataflow import duplicate
from bnkit.tables import text_table


class SurgeryError(ValueError):
    """A change to a model is impossible, or did not keep its promise; the message says where."""


@dataclass(frozen=True)
class Edit:
    """One layer's change: `layer` is its path in `named_modules`, `kind` the name of its class.

    `change` is called with the layer of the copy, and changes it in place.
    """

    layer: str
    kind: str
    action: str
    why: str
    change: Callable[[nn.Module], None] = field(repr=False, compare=False)


@dataclass(frozen=True)
class LeftAlone:
    """One layer that stays as it is, and why."""

    layer: str
    kind: str
    why: str


@dataclass(frozen=True)
class Plan:
    """The edits of a change, one a layer, and the layers left alone; prints as a table."""

    edits: tuple[Edit, ...]
    left_alone: tuple[LeftAlone, ...]

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a deep copy of `model` with the edits made; `model` stays as it is."""
        changed = duplicate(model)
        with torch.inference_mode(mode=False):  # what is made in it could not be trained
            for edit in self.edits:
                edit.change(changed.get_submodule(edit.layer))
        return changed

    def to_json(self) -> dict[str, list[dict[str, str]]]:
        """Return the edits and the layers left alone as plain dictionaries."""
        edits = [
            {"layer": e.layer, "kind": e.kind, "change": e.action, "why": e.why} for e in self.edits
        ]
        return {"edits": edits, "left_alone": [asdict(left) for left in self.left_alone]}

    def __str__(self) -> str:
        edits = [(e.layer or "(the model)", e.kind, e.action, e.why) for e in self.edits]
        rest = [(r.layer or "(the model)", r.kind, "left alone", r.why) for r in self.left_alone]
        if not edits and not rest:
            return "Nothing to change: the model has no layer of the kinds in question."
        return text_table(["layer", "kind", "change", "why"], [*edits, *rest])
