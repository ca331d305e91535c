"""`Conversion`: the plan of `convert`, with its proof or with how far the output moves."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from bnkit.surgery.conversion.calibration import Calls, Movement, calibrate, movement
from bnkit.surgery.distance import Outcome
from bnkit.surgery.operations import Edit, make_edits
from bnkit.surgery.plan import Plan
from bnkit.surgery.promise import SurgeryError, prove_change


@dataclass(frozen=True)
class Conversion(Plan):
    """The plan of `convert`: `movement` says how far the output moves, where it does not stay.

    That is where layers are calibrated, and where a callable of the user makes them.
    """

    movement: Movement | None = field(default=None, metadata={"record": Movement})

    def __str__(self) -> str:
        table = super().__str__()
        return table if self.movement is None else f"{table}\n{self.movement}"


def named(edits: Iterable[Edit], trial: nn.Module) -> tuple[Edit, ...]:
    """Return the edits with the class that each layer becomes, by making them in `trial`."""
    edits = tuple(edits)
    made = make_edits(trial, edits)
    kinds = [type(made.get_submodule(edit.layer)).__name__ for edit in edits]
    return tuple(
        replace(edit, action=f"become {kind}{edit.action}")
        for edit, kind in zip(edits, kinds, strict=True)
    )


def proven(
    model: nn.Module,
    plan: Conversion,
    example: Any,
    before: Outcome | None,
    *,
    tolerance: float | None,
) -> Conversion:
    """Return the plan with its proof on `example`, on which `model` gave what is `before`.

    Raises SurgeryError if the changed model differs.
    """
    proof = prove_change(model, plan.change, example, before=before, tolerance=tolerance)
    return replace(plan, proof=proof)


def calibrated(
    model: nn.Module, plan: Conversion, layers: Iterable[str], calls: Calls
) -> Conversion:
    """Return the plan in which these layers get the values that `calibrate` finds for them."""
    wanted = set(layers)
    states = calibrate(model, {e.layer: e for e in plan.edits if e.layer in wanted}, calls)
    edits = tuple(replace(e, values=states.get(e.layer, {})) for e in plan.edits)
    return replace(plan, edits=edits)


def moved(
    model: nn.Module, plan: Conversion, examples: Iterable[Any], *, tolerance: float | None
) -> Conversion:
    """Return the plan with how far the output moves; SurgeryError if that is over `tolerance`."""
    found = movement(model, plan.apply(model), examples)
    if tolerance is not None and not found.largest <= tolerance:
        raise SurgeryError(
            f"the output moves by {found.largest:.2g} (max|a − b| / max|a|), and `tolerance` "
            f"allows {tolerance:.2g}: leave layers out by `where`, or allow more"
        )
    return replace(plan, movement=found)
