"""`Mend`: what mends a finding, in plans, so that checkpoints of mended models can be loaded."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnkit.dataflow import duplicate
from bnkit.norms import unwrapped
from bnkit.roles import is_batch_norm
from bnkit.surgery.plan import Edit, Plan

_NOTHING = Plan((), ())


@dataclass(frozen=True)
class Step:
    """One change of a mend: `plan(model)` says what it does to the model that it is given.

    `measures` says whether it writes what was measured on the model as it was diagnosed; such steps
    come before those that change what a layer is given.
    """

    plan: Callable[[nn.Module], Plan]
    measures: bool = False


@dataclass(frozen=True)
class Mend:
    """A function from a model, the diagnosed one or one that other mends have changed, to a copy.

    What an earlier mend has taken away it leaves alone. DataParallel and the like around the model
    are taken off.
    """

    steps: tuple[Step, ...]

    def __call__(self, model: nn.Module) -> nn.Module:
        """Return the mended copy; `model` stays as it is."""
        return mended_by([self], model)[0]


def altering(
    layer: str,
    operation: str,
    change: Callable[[nn.Module], object],
    *,
    action: str,
    needs: Sequence[str] = (),
    measures: bool = False,
    **options: Any,
) -> Mend:
    """Return the mend of one edit: `change(copy)`, of which `operation` is the structural part.

    That is one of `bnkit.surgery.structure.OPERATIONS`, with its `options`. The edit is left out of
    a model that does not have the `layer` any more, or has no batch norm at one of the paths that
    it `needs`.

    >>> mend = altering("", "write_values", lambda bn: bn.weight.fill_(2), action="double")
    >>> mend(nn.BatchNorm1d(1)).weight.item()
    2.0
    """

    def plan(model: nn.Module) -> Plan:
        held = dict(model.named_modules(remove_duplicate=False))
        if layer not in held or not all(p in held and is_batch_norm(held[p]) for p in needs):
            return _NOTHING
        structure = {"operation": operation, "layer": layer, **options}
        kind = type(held[layer]).__name__
        return Plan((Edit(layer, kind, action, "it mends a finding", quietly, structure),), ())

    def quietly(model: nn.Module) -> None:
        with torch.no_grad():
            change(model)

    return Mend((Step(plan, measures),))


def in_turn(*mends: Mend | None) -> Mend | None:
    """Return the mend that does what each of these does; None where there are none.

    >>> one, two = (
    ...     altering("", "write_values", lambda bn, x=x: bn.weight.add_(x), action="add")
    ...     for x in (1, 2)
    ... )
    >>> in_turn(one, None, two)(nn.BatchNorm1d(1)).weight.item()
    4.0
    """
    steps = tuple(step for mend in mends if mend is not None for step in mend.steps)
    return Mend(steps) if steps else None


def mended_by(mends: Iterable[Mend], model: nn.Module) -> tuple[nn.Module, tuple[Plan, ...]]:
    """Return a copy of the model with all steps made, and their plans in order, for a checkpoint.

    Steps that write what was measured come first: the others keep what the model computes.

    >>> mend = altering("", "write_values", lambda bn: bn.weight.mul_(0.5), action="halve")
    >>> mended, plans = mended_by([mend, mend], nn.BatchNorm1d(1))
    >>> mended.weight.item(), len(plans)
    (0.25, 2)
    """
    steps = [step for mend in mends for step in mend.steps]
    measuring = dict.fromkeys(step for step in steps if step.measures)  # once for many findings
    changed, plans = duplicate(unwrapped(model)), list[Plan]()
    with torch.inference_mode(mode=False):
        for step in (*measuring, *(step for step in steps if not step.measures)):
            plan = step.plan(changed)
            for edit in plan.edits:
                edit.change(changed)
            plans += [plan] if plan.edits else []
    return changed, tuple(plans)
