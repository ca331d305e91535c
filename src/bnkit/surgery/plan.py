"""`Plan`: what a change to a model does to each layer, what it leaves alone, and why."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self, TypeVar

from torch import nn

from bnkit.dataflow import duplicate
from bnkit.norms import Where
from bnkit.notebooks import Shown
from bnkit.surgery.operations import Edit, make_edits
from bnkit.surgery.verification import Outcome, Proof, verify
from bnkit.tables import first_few, frame_of, path_or_model, text_table

_COLUMNS = ("layer", "kind", "change", "why")
_ONLY_IF_THERE = ("proof", "movement")  # keys that are left out rather than null


@dataclass(frozen=True)
class LeftAlone:
    """One layer that stays as it is, and why."""

    layer: str
    kind: str
    why: str


Row = TypeVar("Row", Edit, LeftAlone)


@dataclass(frozen=True)
class Plan(Shown):
    """The edits of a change and the layers left alone; prints as a table.

    `proof` says how far the changed model is from the original, where the change promises to keep
    the function.
    """

    edits: tuple[Edit, ...]
    left_alone: tuple[LeftAlone, ...]
    proof: Proof | None = field(default=None, metadata={"record": Proof})  # for from_json

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a deep copy of `model` with the edits made; `model` stays as it is."""
        return self.change(duplicate(model))

    def change(self, model: nn.Module) -> nn.Module:
        """Make the edits in `model` itself, and return it, or the layer that it is now behind."""
        return make_edits(model, self.edits)

    def to_json(self, *, values: bool = False) -> dict[str, Any]:
        """Return the plan as plain data; with the tensors of its edits, as numbers, if asked to."""
        data: dict[str, Any] = {
            "edits": [edit.to_json(values=values) for edit in self.edits],
            "left_alone": [asdict(left) for left in self.left_alone],
        }
        for each in fields(self)[2:]:
            value = getattr(self, each.name)
            if value is not None or each.name not in _ONLY_IF_THERE:
                is_record = "record" in each.metadata and value is not None
                data[each.name] = asdict(value) if is_record else value
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        """Return the plan that `to_json(values=True)` wrote; ValueError for edits by a function.

        >>> plan = Plan((), (LeftAlone("0", "Linear", "output layer"),))
        >>> Plan.from_json(plan.to_json(values=True)) == plan
        True
        """
        edits = tuple(Edit.from_json(edit) for edit in data["edits"])
        left_alone = tuple(LeftAlone(**left) for left in data["left_alone"])
        results = {}
        for each in fields(cls)[2:]:
            value = data.get(each.name)
            if value is not None:
                record = each.metadata.get("record")
                results[each.name] = value if record is None else record(**value)
        return cls(edits, left_alone, **results)

    def verified(
        self,
        model: nn.Module,
        example: Any,
        *,
        before: Outcome | None = None,
        tolerance: float | None = None,
    ) -> Self:
        """Return the plan with its proof, which a plan without edits does not need.

        `before` is what `model` gave on `example`. Raises SurgeryError if the changed model
        differs.
        """
        if not self.edits:
            return self
        proof = verify(model, self.change, example, before=before, tolerance=tolerance)
        return replace(self, proof=proof)

    def why_nothing(self, done: str, *, where: Where | None, planner: str) -> str:
        """Return the message for a plan without edits, which names the layers left alone and why.

        >>> print(Plan((), ()).why_nothing("folded", where=None, planner="plan_folding"))
        nothing in this model can be folded: it has no batch norm
        """
        if not self.left_alone:
            return f"nothing in this model can be {done}: it has no batch norm"
        chosen = "that `where` chose" if where else "in this model"
        reasons = [f"{r.layer or 'the model'} ({r.kind}): {r.why}" for r in self.left_alone]
        listed = first_few(reasons, ending=f", which {planner} lists")
        return f"nothing {chosen} can be {done}. {listed}"

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row for each layer; MissingExtraError without pandas."""
        rows = [(e.layer, e.kind, e.action, e.why) for e in self.edits]
        rows += [(each.layer, each.kind, "left alone", each.why) for each in self.left_alone]
        return frame_of(dict(zip(_COLUMNS, row, strict=True)) for row in rows)

    def __str__(self) -> str:
        rows = [(e.layer, e.kind, e.action, e.why) for e in self.edits]
        return as_table(rows, self.left_alone, self.proof)


def as_table(
    edits: Iterable[tuple[str, str, str, str]], left_alone: Iterable[LeftAlone], proof: object
) -> str:
    """Return a plan as a table: layer, kind, action and why of each edit, what is left, the proof.

    >>> print(as_table([("0", "Linear", "drop bias", "a batch norm follows")], [], None))
     layer   kind     change      why
    ───────────────────────────────────────────────────
     0       Linear   drop bias   a batch norm follows
    """
    left = [(each.layer, each.kind, "left alone", each.why) for each in left_alone]
    rows = [(path_or_model(layer), *more) for layer, *more in (*edits, *left)]
    if not rows:
        return "Nothing to change: the model has no layer of the kinds in question."
    table = text_table(_COLUMNS, rows)
    return table if proof is None else f"{table}\n{proof}"


def in_order_of(model: nn.Module, rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the rows in the order of the model's layers; functions, which have none, come last.

    >>> rows = LeftAlone("relu()", "function", ""), LeftAlone("1", "ReLU", "")
    >>> [row.layer for row in in_order_of(nn.Sequential(nn.Tanh(), nn.ReLU()), rows)]
    ['1', 'relu()']
    """
    order = {path: index for index, (path, _) in enumerate(model.named_modules())}
    return tuple(sorted(rows, key=lambda row: order.get(row.layer, len(order))))
