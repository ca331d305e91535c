"""`Plan`: what a change to a Keras model does to each layer, what it leaves alone, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bnkit.keras.graph import Call
from bnkit.keras.rebuilding import Change, rebuilt
from bnkit.keras.verification import Proof
from bnkit.notebooks import Shown
from bnkit.surgery.plan import LeftAlone, as_table


@dataclass(frozen=True)
class Edit:
    """One layer's change: `layer` is its path, `kind` the name of its class."""

    layer: str
    kind: str
    action: str
    why: str


@dataclass(frozen=True)
class Plan(Shown):
    """The edits of a change and the layers left alone; prints as a table.

    `proof` says how far the changed model is from the original, where the change keeps the
    function.
    """

    edits: tuple[Edit, ...]
    left_alone: tuple[LeftAlone, ...]
    changes: Mapping[int, Change] = field(repr=False, compare=False)
    proof: Proof | None = None

    def apply(self, model: Any) -> Any:
        """Return a copy of the model that was planned for, with the edits made."""
        return rebuilt(model, self.changes)

    def to_json(self) -> dict[str, Any]:
        """Return the edits, the layers left alone and the proof as plain data."""
        proof = {} if self.proof is None else {"proof": vars(self.proof)}
        edits = [
            {"layer": e.layer, "kind": e.kind, "change": e.action, "why": e.why} for e in self.edits
        ]
        return {"edits": edits, "left_alone": [vars(left) for left in self.left_alone], **proof}

    def __str__(self) -> str:
        rows = [(e.layer, e.kind, e.action, e.why) for e in self.edits]
        return as_table(rows, self.left_alone, self.proof)


def left(call: Call, why: str) -> LeftAlone:
    """Return the row of a layer that stays as it is."""
    return LeftAlone(call.path, call.kind, why)
