"""`add`: the twin of a network with batch norm in the places where it belongs."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Literal, TypedDict, Unpack, get_args

from torch import nn

from bnkit.dataflow import (
    Call,
    Dataflow,
    ExampleError,
    duplicate,
    observe,
    observe_in_training,
)
from bnkit.norms import NOT_CHOSEN, Where
from bnkit.options import Default, with_options
from bnkit.surgery.operations import check_numbers
from bnkit.surgery.placement import (
    NOT_CALLED,
    after_activation,
    before_activation,
    functional_layers,
    objection_to_place,
    objections_to_layers,
    recurrent_layers,
)
from bnkit.surgery.plan import LeftAlone, Plan, in_order_of
from bnkit.surgery.segment import Segment, segment_after
from bnkit.surgery.verification import Outcome, SurgeryError, trace_itself

Placement = Literal["before_activation", "after_activation", "every_conv"]


class AdditionOptions(TypedDict, total=False):
    """What `add` and `insert` share; `add` explains them."""

    where: Annotated[Where | None, Default(None)]
    placement: Annotated[Placement, Default("before_activation")]
    momentum: Annotated[float | None, Default(0.1)]
    eps: Annotated[float, Default(1e-5)]


@with_options
def add(model: nn.Module, example: Any, **options: Unpack[AdditionOptions]) -> nn.Module:
    """Return the twin of `model` with batch norm: a copy, equal in every weight that both have.

    Dense and conv layers whose output reaches an activation before it reaches another weight layer
    or the model's output normalise that output; the bias that this makes redundant is dropped
    (Ioffe and Szegedy 2015, section 3.2). The output layer is never normalised. `example` is a
    tensor, a tuple of positional or a dict of keyword arguments, on which the model runs once in
    eval mode; heads that run in training alone are judged by a run in training mode. Left alone are
    also the gates of squeeze-and-excitation and convs after a global pooling, where a batch norm
    gets one value per channel and sample. `where(path, layer)` chooses among the layers;
    `placement` puts the batch norm before or after the activation (then biases stay);
    "every_conv" is before it, and also where a conv has none, as linear bottlenecks and depthwise
    convs of MobileNetV2 and its kin have it. `momentum` and `eps` are torch's. `model` stays as
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
    plan = plan_addition(model, example, **options)
    if not plan.edits:
        raise SurgeryError(nothing_to_normalise(model, plan, options["where"]))
    twin = plan.apply(model)
    _check_that_it_runs(twin, example)
    return twin


@with_options
def plan_addition(model: nn.Module, example: Any, **options: Unpack[AdditionOptions]) -> Plan:
    """Return what `add` would do, layer by layer, and what it would leave alone and why.

    >>> import torch
    >>> plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> print(plan_addition(plain, torch.zeros(2, 8)))
     layer   kind     change                             why
    ───────────────────────────────────────────────────────────────────────────────────────────────
     0       Linear   normalise 16 features, drop bias   '1' (ReLU) follows
     2       Linear   left alone                         output layer: its result leaves the model
    """
    return plan_in_modes(model, example, both=True, **options)[0]


@with_options
def plan_in_modes(
    model: nn.Module, example: Any, *, both: bool, **options: Unpack[AdditionOptions]
) -> tuple[Plan, Outcome]:
    """Return the plan of `add`, and what the model gave in eval mode when it was traced.

    Without `both` it is only for layers that run in eval mode.

    >>> import torch
    >>> plan, _ = plan_in_modes(nn.Sequential(nn.Linear(2, 2)), torch.zeros(3, 2), both=False)
    >>> plan.left_alone[0].why
    'output layer: its result leaves the model'
    """
    where, placement = options["where"], options["placement"]
    if placement not in get_args(Placement):
        raise ValueError(f"`placement` is {placement!r}: choose from {get_args(Placement)}")
    check_numbers(momentum=options["momentum"], eps=options["eps"])
    subject = duplicate(model)
    flow, outcome = trace_itself(subject, example)
    found = _changes(model, subject, flow, options)
    idle = {left.layer for left in found.left_alone if left.why == NOT_CALLED}
    training = observe_in_training(model, example) if idle and both else None
    if training is not None:  # heads that run in training mode alone, judged by that
        chosen = {path for path in idle if training.calls_of(path)}
        others = _changes(model, subject, training, {**options, "where": where}, only=chosen)
        kept = [left for left in found.left_alone if left.layer not in chosen]
        found = Plan((*found.edits, *others.edits), (*kept, *others.left_alone))
    changed = {edit.layer for edit in found.edits}
    rest = [left for left in found.left_alone if left.layer not in changed]  # a layer has one row
    return Plan(in_order_of(subject, found.edits), in_order_of(subject, rest)), outcome


def _changes(
    model: nn.Module,
    subject: nn.Module,
    flow: Dataflow,
    options: AdditionOptions,
    *,
    only: AbstractSet[str] | None = None,
) -> Plan:
    """Return the edits for the layers as `flow` has them, all of them or `only` these."""
    placement = options["placement"]
    numbers = {"momentum": options["momentum"], "eps": options["eps"]}
    objections = objections_to_layers(subject, flow)
    asked = {path: why for path, why in objections.items() if only is None or path in only}
    chosen, left_alone = _choose(model, flow, asked, options["where"], placement)
    if only is None:
        found = (each for each in recurrent_layers(subject) if _is_chosen(model, each, options))
        left_alone = [*functional_layers(flow), *found, *left_alone]
    if placement == "after_activation":
        edits, refused = after_activation(flow, chosen, objections, numbers)
        return Plan(tuple(edits), (*left_alone, *refused))
    edits = [before_activation(flow, call, segment, numbers) for call, segment in chosen]
    return Plan(tuple(edits), tuple(left_alone))


def _choose(
    model: nn.Module,
    flow: Dataflow,
    objections: Mapping[str, str | None],
    where: Where | None,
    placement: Placement,
) -> tuple[list[tuple[Call, Segment]], list[LeftAlone]]:
    chosen: list[tuple[Call, Segment]] = []
    left_alone: list[LeftAlone] = []
    for path, objection in objections.items():
        layer = model.get_submodule(path)  # the original, in which `where` may look for its own
        found = objection or _place(flow, path, layer, where, placement)
        if isinstance(found, str):
            left_alone.append(LeftAlone(path, type(layer).__name__, found))
        else:
            chosen.append(found)
    return chosen, left_alone


def _is_chosen(model: nn.Module, left: LeftAlone, options: AdditionOptions) -> bool:
    where = options["where"]
    return where is None or where(left.layer, model.get_submodule(left.layer))


def _place(
    flow: Dataflow, path: str, layer: nn.Module, where: Where | None, placement: Placement
) -> tuple[Call, Segment] | str:
    """Return the call of the layer and what follows it, or why no batch norm belongs there."""
    if where is not None and not where(path, layer):
        return NOT_CHOSEN
    (call,) = flow.calls_of(path)
    segment = segment_after(flow, call)
    every_conv = placement == "every_conv"
    return objection_to_place(flow, call, segment, every_conv=every_conv) or (call, segment)


def nothing_to_normalise(model: nn.Module, plan: Plan, where: Where | None) -> str:
    """Return the message for a plan without edits: what the model holds, or why it stays so."""
    if plan.left_alone:
        return plan.why_nothing("normalised", where=where, planner="plan_addition")
    kinds = {type(m).__name__ for m in model.modules() if next(m.children(), None) is None}
    return (
        f"nothing {'that `where` chose' if where else 'in this model'} can be normalised: it has "
        f"no dense or conv layer, only {', '.join(sorted(kinds))}"
    )


def _check_that_it_runs(twin: nn.Module, example: Any) -> None:
    try:
        observe(duplicate(twin), example)
    except ExampleError as error:
        raise SurgeryError(
            f"with batch norms, and without the biases that they make redundant, {error}; leave "
            f"layers out by `where`"
        ) from error
