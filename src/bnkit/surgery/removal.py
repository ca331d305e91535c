"""`remove`: the same network in eval mode without batch norm, folded or as plain affine maps."""

from typing import Any

import torch
from torch import nn

from bnkit.behaviour import activation_of, affine_of, name_of_activation
from bnkit.layers.activated import path_of_norm
from bnkit.layers.affine import ChannelAffine
from bnkit.norms import Where
from bnkit.surgery.folding.candidates import Candidate
from bnkit.surgery.folding.folding import fold_edit, of_domain, survey
from bnkit.surgery.operations import Edit, operation, replace_module
from bnkit.surgery.plan import Plan, in_order_of
from bnkit.surgery.verification import SurgeryError


def remove(
    model: nn.Module, example: Any, *, where: Where | None = None, tolerance: float | None = None
) -> nn.Module:
    """Return a copy of `model` without batch norms that computes the same in eval mode.

    Each is folded into a layer beside it where `fold` can do that, and becomes a `ChannelAffine`
    elsewhere: also where it is called several times, or not at all on `example`. The arguments and
    the errors are those of `fold`. What a batch norm does in eval mode may be unknown, as in
    classes with a forward of their own, or need the mini-batch; those stay, and `plan_removal` says
    why.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3))
    >>> remove(model, torch.zeros(1, 2))[2]
    ChannelAffine(3)
    """
    plan = plan_removal(model, example, where=where, tolerance=tolerance)
    if not plan.edits:
        raise SurgeryError(plan.why_nothing("removed", where=where, planner="plan_removal"))
    return plan.apply(model)


def plan_removal(
    model: nn.Module, example: Any, *, where: Where | None = None, tolerance: float | None = None
) -> Plan:
    """Return what `remove` would do, as `plan_folding` does for `fold`; an empty plan is fine.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3))
    >>> plan_removal(model, torch.zeros(1, 2)).edits[0].action
    'become ChannelAffine(3)'
    """
    found = survey(model, example, where=where)
    folds = [fold_edit(match) for match in found.matches]
    rest = [_edit(candidate, f"no layer takes it in: {why}") for candidate, why in found.stuck]
    plan = Plan((*folds, *rest), in_order_of(model, found.left_alone))
    return plan.verified(model, example, before=found.outcome, tolerance=tolerance)


@operation
def use_channel_affine(model: nn.Module, layer: str) -> None:
    """Replace the batch norm of `model` at the path `layer` by a ChannelAffine.

    It computes what the batch norm does in eval mode. Its weight and bias train if those of the
    batch norm do.

    >>> model = nn.Sequential(nn.BatchNorm1d(2, affine=False, eps=3.0))
    >>> use_channel_affine(model, "0")
    >>> model[0].weight
    Parameter containing:
    tensor([0.5000, 0.5000])
    """
    layer = path_of_norm(model, layer)
    replace_module(model, layer, _channel_affine(model.get_submodule(layer)))


def _channel_affine(batch_norm: nn.Module) -> nn.Module:
    affine, activation = affine_of(batch_norm), activation_of(batch_norm)
    held = {**dict(batch_norm.named_parameters()), **dict(batch_norm.named_buffers())}
    like = held.get("running_mean", next(t for t in held.values() if t.is_floating_point()))
    name = None if activation is None else name_of_activation(activation)
    made = ChannelAffine(len(affine.scale), like.device, like.dtype, activation=name)
    with torch.no_grad():
        made.weight.copy_(affine.scale)
        made.bias.copy_(affine.offset)
        made.center.copy_(affine.center)
    for parameter in ("weight", "bias"):
        before = held.get(parameter)
        trains = before is not None and before.requires_grad
        getattr(made, parameter).requires_grad_(trains)
    # An activation that bnkit's layers do not know stands behind it.
    return made if activation is None or name else nn.Sequential(made, activation)


def _edit(candidate: Candidate, why: str) -> Edit:
    features = len(affine_of(candidate.module).scale)
    action = f"become ChannelAffine({features}){of_domain(candidate)}"
    return Edit(candidate.path, candidate.kind, action, why, "use_channel_affine")
