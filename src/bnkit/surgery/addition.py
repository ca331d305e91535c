"""`add`: the twin of a network with batch norm in the places where it belongs."""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import nn

from bnkit.dataflow import Call, Dataflow, duplicate, observe
from bnkit.roles import can_own_batch_norm
from bnkit.surgery.eligibility import functional_layers, objection_to_layer, objection_to_place
from bnkit.surgery.normalized import own_batch_norm
from bnkit.surgery.placement import after_activation, before_activation
from bnkit.surgery.plan import LeftAlone, Plan, SurgeryError
from bnkit.surgery.stretch import Stretch, stretch_after

Where = Callable[[str, nn.Module], bool]
Placement = Literal["before_activation", "after_activation"]


def add(
    model: nn.Module,
    example: Any,
    *,
    where: Where | None = None,
    placement: Placement = "before_activation",
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> nn.Module:
    """Return the twin of `model` with batch norm: a copy, equal in every weight that both have.

    Dense and conv layers whose output reaches an activation before it reaches another weight layer
    or the model's output normalise that output; the bias that this makes redundant is dropped
    (Ioffe and Szegedy 2015, section 3.2). The output layer is never normalised. `example` is a
    tensor, a tuple of positional or a dict of keyword arguments, on which the model runs once in
    eval mode. `where(path, layer)` chooses among the layers; `placement` puts the batch norm before
    or after the activation (then biases stay). `momentum` and `eps` are torch's. `model` stays as
    it is, and shares nothing with the twin: make the optimizer for the twin afterwards.

    Raises ExampleError if the model fails on `example`, SurgeryError (both are ValueErrors) if
    nothing can be normalised.

    >>> import torch
    >>> plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> twin = add(plain, torch.zeros(2, 8))
    >>> optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    >>> twin[0].batchnorm.num_features, twin[0].bias
    (16, None)
    """
    plan = plan_addition(
        model, example, where=where, placement=placement, momentum=momentum, eps=eps
    )
    if not plan.edits:
        raise SurgeryError(_nothing_to_normalise(model, plan))
    twin = plan.apply(model)
    _check_shapes(model, twin, example)
    return twin


def plan_addition(
    model: nn.Module,
    example: Any,
    *,
    where: Where | None = None,
    placement: Placement = "before_activation",
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Plan:
    """Return what `add` would do, layer by layer, and what it would leave alone and why.

    >>> import torch
    >>> plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> print(plan_addition(plain, torch.zeros(2, 8)))
     layer   kind     change                              why
    ──────────────────────────────────────────────────────────────────────────────────────────────
     0       Linear   normalise 16 features, drop bias   '1' (ReLU) follows
     2       Linear   left alone                         output layer: its result leaves the model
    """
    if placement not in get_args(Placement):
        raise ValueError(f"`placement` is {placement!r}: choose from {get_args(Placement)}")
    subject = duplicate(model)
    flow = observe(subject, example)
    own = functools.partial(own_batch_norm, momentum=momentum, eps=eps)
    chosen, left_alone = _choose(subject, flow, where)
    if placement == "before_activation":
        edits = [before_activation(flow, call, stretch, own) for call, stretch in chosen]
    else:
        edits, refused = after_activation(subject, flow, chosen, own)
        left_alone += refused
    order = {path: index for index, path in enumerate(dict(subject.named_modules()))}
    left_alone.sort(key=lambda left: order.get(left.layer, len(order)))
    return Plan(tuple(edits), tuple(left_alone))


def _choose(
    model: nn.Module, flow: Dataflow, where: Where | None
) -> tuple[list[tuple[Call, Stretch]], list[LeftAlone]]:
    chosen, left_alone = [], list(functional_layers(flow))
    for path, layer in model.named_modules():
        if not can_own_batch_norm(layer):
            continue
        objection = objection_to_layer(model, flow, path, layer)
        if objection is None and where is not None and not where(path, layer):
            objection = "`where` did not choose it"
        if objection is None:
            (call,) = flow.calls_of(path)
            stretch = stretch_after(flow, call)
            objection = objection_to_place(flow, call, stretch)
            chosen += [(call, stretch)] if objection is None else []
        if objection is not None:
            left_alone.append(LeftAlone(path, type(layer).__name__, objection))
    return chosen, left_alone


def _nothing_to_normalise(model: nn.Module, plan: Plan) -> str:
    found = sorted({type(m).__name__ for m in model.modules() if next(m.children(), None) is None})
    layers = [f"{left.layer} ({left.kind}): {left.why}" for left in plan.left_alone]
    return (
        "nothing in this model can be normalised: no dense or conv layer of it leads to an "
        f"activation. It holds {', '.join(found)}. " + "; ".join(layers)
    ).rstrip()


def _check_shapes(model: nn.Module, twin: nn.Module, example: Any) -> None:
    before, after = (_output_shapes(observe(duplicate(m), example)) for m in (model, twin))
    if before != after:
        raise SurgeryError(
            f"the twin's outputs have the shapes {after} where the model's have {before}: choose "
            f"layers with `where`, and please report it"
        )


def _output_shapes(flow: Dataflow) -> list[tuple[int, ...]]:
    return sorted(flow.shapes[value] for value in flow.outputs)
