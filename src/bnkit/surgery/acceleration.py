"""`accelerate`: the same model with bnkit's batch norms, fused with the activations after them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bnkit.internals import AnyBatchNorm
from bnkit.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.surgery.fusing import NAMES, Modes, activation_after
from bnkit.surgery.operations import Edit, operation, replace_module
from bnkit.surgery.plan import LeftAlone, Plan
from bnkit.surgery.promise import prove_change

Where = Callable[[str, nn.Module], bool]

_KINDS = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}
_OURS = tuple(_KINDS.values())


def accelerate(
    model: nn.Module,
    example: Any,
    *,
    where: Where | None = None,
    tolerance: float | None = None,
) -> nn.Module:
    """Return a copy of `model` whose batch norms are bnkit's, fused with what follows them.

    Function, gradients and state-dict keys stay the same. A batch norm of torch becomes that of
    bnkit; an activation module that alone reads its output, and is called once, is computed within
    it and becomes an Identity. Functional and shared activations stay where they are: computing
    them twice would save nothing. `example` is a tensor, a tuple of positional or a dict of keyword
    arguments, on which the model runs in both modes. `where(path, layer)` chooses among the batch
    norms. `model` stays as it is: make the optimizer for the copy afterwards.

    Raises ExampleError if the model fails on `example`, and SurgeryError if the copy computes
    something else there (by more than `tolerance`, see `prove_same_function`).

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> fast = accelerate(model, torch.randn(2, 3, 8, 8))
    >>> fast[1].activation, fast[2]
    ('relu', Identity())
    """
    plan = plan_acceleration(model, example, where=where, tolerance=tolerance)
    return plan.apply(model)


def plan_acceleration(
    model: nn.Module,
    example: Any,
    *,
    where: Where | None = None,
    tolerance: float | None = None,
) -> Plan:
    """Return what `accelerate` would do, layer by layer, and what it would leave alone and why.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> print(plan_acceleration(model, torch.randn(2, 3, 8, 8)))  # doctest: +ELLIPSIS
     layer   kind          change                      why
    ───────────────────────────────────────────────────────────────────────────────────────
     1       BatchNorm2d   bnkit's, with relu of '2'   it alone reads what the layer makes
    Same function: error ...
    """
    modes = Modes.of(model, example)
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, AnyBatchNorm)]
    found = [_edit(modes, path, layer, where) for path, layer in layers]
    plan = Plan(
        tuple(edit for edit in found if isinstance(edit, Edit)),
        tuple(left for left in found if isinstance(left, LeftAlone)),
    )
    proof = prove_change(model, plan.change, example, tolerance=tolerance)
    return replace(plan, proof=proof)


def use_bnkit(model: nn.Module, layer: str, *, activation: str | None = None) -> None:
    """Make the batch norm of torch at `layer` one of bnkit's, in place, with this activation.

    It keeps its identity, parameters, buffers, hooks and torch's treatment of mini-batches that are
    not finite (guard=False). A batch norm of bnkit only gets the activation.
    """
    module = model.get_submodule(layer)
    if type(module) in _KINDS:
        module.__class__ = _KINDS[type(module)]  # type: ignore[index]
        module.guard = False  # type: ignore[assignment]
        device = next((t.device for t in module.state_dict().values()), None)
        count = torch.zeros((), dtype=torch.long, device=device)
        module.register_buffer("non_finite_batches", count, persistent=False)
    module.activation = activation  # type: ignore[assignment]


def _edit(modes: Modes, path: str, layer: AnyBatchNorm, where: Where | None) -> Edit | LeftAlone:
    kind = type(layer).__name__
    objection = _objection(path, layer, where)
    if objection is not None:
        return LeftAlone(path, kind, objection)
    activation, reason = activation_after(modes, path, layer)
    if activation is None and isinstance(layer, _OURS):
        return LeftAlone(path, kind, f"bnkit's already, and {reason}")
    name = None if activation is None else NAMES[type(activation.module)]  # type: ignore[index]
    action = "bnkit's" if name is None else f"bnkit's, with {name} of '{activation.name}'"  # type: ignore[union-attr]
    replaced = None if activation is None else activation.name
    options = {"activation": name, "replaced": replaced}
    return Edit(path, kind, action, reason, "apply_acceleration", options)


@operation
def apply_acceleration(
    model: nn.Module, layer: str, *, activation: str | None, replaced: str | None
) -> None:
    """Make the batch norm at `layer` bnkit's, and the module at `replaced` an Identity."""
    use_bnkit(model, layer, activation=activation)
    if replaced is not None:
        replace_module(model, replaced, nn.Identity())


def _objection(path: str, layer: AnyBatchNorm, where: Where | None) -> str | None:
    if where is not None and not where(path, layer):
        return "`where` did not choose it"
    if type(layer) not in (*_KINDS, *_OURS):
        return "of a class of its own, whose forward may do anything"
    if "forward" in vars(layer):
        return "its forward is set on the instance"
    return None
