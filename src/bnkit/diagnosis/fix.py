"""`Fix`: the edits that take a finding away, made on a copy by the same loop as every plan's."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from bnkit.dataflow import duplicate
from bnkit.norms import unwrapped
from bnkit.roles import is_batch_norm
from bnkit.surgery.operations import Edit
from bnkit.surgery.plan import Plan


@dataclass(frozen=True)
class Step:
    """One change of a fix: `plan(model)` says what it does to the model that it is given.

    `measures` says whether it writes what was measured on the model as it was diagnosed; such steps
    come before those that change what a layer is given.
    """

    plan: Callable[[nn.Module], Plan]
    measures: bool = False


@dataclass(frozen=True)
class Fix:
    """A function from a model, the diagnosed one or one that other fixes have changed, to a copy.

    What an earlier fix has taken away it leaves alone. DataParallel and the like around the model
    are taken off.
    """

    steps: tuple[Step, ...]

    def __call__(self, model: nn.Module) -> nn.Module:
        """Return the fixed copy; `model` stays as it is."""
        return fixed_by([self], model)[0]


def by_edit(edit: Edit, *, needs: Sequence[str] = (), measures: bool = False) -> Fix:
    """Return the fix of one edit, of which the kind of the layer and the reason are filled in.

    The edit is left out of a model that does not have its layer any more, or has no batch norm at
    one of the paths that it `needs`. `measures` is that of `Step`.

    >>> import torch
    >>> edit = Edit("", "", "double", "", "write_values", {}, {"weight": torch.tensor([2.0])})
    >>> by_edit(edit)(nn.BatchNorm1d(1)).weight.item()
    2.0
    """

    def plan(model: nn.Module) -> Plan:
        layer, needed = _module_at(model, edit.layer), [_module_at(model, path) for path in needs]
        if layer is None or not all(each is not None and is_batch_norm(each) for each in needed):
            return Plan((), ())
        return Plan((replace(edit, kind=type(layer).__name__, why="it fixes a finding"),), ())

    return Fix((Step(plan, measures),))


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:  # another fix has taken it away
        return None


def in_turn(*fixes: Fix | None) -> Fix | None:
    """Return the fix that does what each of these does; None where there are none.

    >>> one, two = (
    ...     by_edit(Edit("", "", "", "", "set_numbers", {name: 0.5}))
    ...     for name in ("momentum", "eps")
    ... )
    >>> in_turn(one, None, two)(nn.BatchNorm1d(1))
    BatchNorm1d(1, eps=0.5, momentum=0.5, affine=True, bias=True, track_running_stats=True)
    """
    found = [fix for fix in fixes if fix is not None]
    if len(found) < 2:  # that of all trained layers is one object, for however many findings
        return found[0] if found else None
    return Fix(tuple(step for fix in found for step in fix.steps))


def fixed_by(fixes: Iterable[Fix], model: nn.Module) -> tuple[nn.Module, tuple[Plan, ...]]:
    """Return a copy of the model with all steps made, and their plans in order, for a checkpoint.

    Steps that write what was measured come first: the others keep what the model computes.

    >>> numbers = ({"momentum": 0.5}, {"eps": 0.5})
    >>> fixes = [by_edit(Edit("", "", "", "", "set_numbers", options)) for options in numbers]
    >>> fixed, plans = fixed_by(fixes, nn.BatchNorm1d(1))
    >>> fixed.momentum, fixed.eps, len(plans)
    (0.5, 0.5, 2)
    """
    each_once = {id(fix): fix for fix in fixes}
    steps = [step for fix in each_once.values() for step in fix.steps]
    measuring = dict.fromkeys(step for step in steps if step.measures)  # once for many findings
    changed, plans = duplicate(unwrapped(model), gathers=True), list[Plan]()
    for step in (*measuring, *(step for step in steps if not step.measures)):
        plan = step.plan(changed)
        if plan.edits:
            changed = plan.change(changed)
            plans.append(plan)
    return changed, tuple(plans)
