"""Where a batch norm goes: on a layer's output, its activation's, or the next layer's input."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from bnkit.dataflow import Call, Dataflow
from bnkit.internals import FORWARDS
from bnkit.roles import WEIGHT_LAYERS, can_own_batch_norm
from bnkit.surgery.eligibility import (
    layer_kind,
    objection_to_class,
    objection_to_shape,
)
from bnkit.surgery.operations import Edit
from bnkit.surgery.plan import LeftAlone
from bnkit.surgery.stretch import Stretch, next_weights

Options = Mapping[str, Any]  # momentum and eps, the same for the whole change


def before_activation(flow: Dataflow, call: Call, stretch: Stretch, options: Options) -> Edit:
    """Return the edit by which the layer of `call` normalises its output and loses its bias.

    A layer whose class has a forward of its own keeps the bias, which need not be redundant there.
    """
    layout = _layout(call, flow.shapes[call.outputs[0]])
    biased = getattr(call.module, "bias", None) is not None
    redundant = _has_forward_of_torch(call.module)
    bias = f", {'drop' if redundant else 'keep'} bias" if biased else ""
    action = f"normalise {layout['features']} features{bias}"
    why = f"{stretch.activations[0]} follows"
    drop = {"drop_bias": biased and redundant}
    return _edit(call, action, why, side="output", **layout, **options, **drop)


def _has_forward_of_torch(layer: nn.Module | None) -> bool:
    kind = layer_kind(layer)
    return all(getattr(type(layer), name, None) is getattr(kind, name, None) for name in FORWARDS)


def after_activation(
    flow: Dataflow,
    chosen: list[tuple[Call, Stretch]],
    objections: Mapping[str, str | None],
    options: Options,
) -> tuple[list[Edit], list[LeftAlone]]:
    """Return the edits that normalise what the activations after `chosen` make, and the rest.

    `objections` says by path which layers cannot own a batch norm.
    """
    edits: dict[str, Edit] = {}
    refused = []
    for call, stretch in chosen:
        found = [_after(flow, (call, a), stretch, objections, options) for a in stretch.activations]
        reasons = [reason for reason in found if isinstance(reason, str)]
        if reasons:
            refused.append(LeftAlone(call.name, call.kind, reasons[0]))
        else:
            edits |= {edit.layer: edit for edit in found if isinstance(edit, Edit)}
    return list(edits.values()), refused


def _after(
    flow: Dataflow,
    pair: tuple[Call, Call],
    stretch: Stretch,
    objections: Mapping[str, str | None],
    options: Options,
) -> Edit | str:
    """Return the edit for one (layer, activation), or why there is none."""
    call, activation = pair
    uses = 0 if activation.module is None else len(flow.calls_of(activation.name))
    if uses == 1:
        return _own_output(flow, call, activation, stretch, options)
    shared = f"{activation} is {f'called {uses} times' if uses else 'no module'}"
    layer = next_weights(flow, activation)
    if layer is None:
        return f"{shared}, and what it makes is not read by one weight layer alone"
    if not can_own_batch_norm(layer.module):
        return f"{shared}, and {layer} cannot own a batch norm"
    shape = flow.shapes[layer.inputs[0]]
    objection = objections[layer.name] or objection_to_shape("input", shape, layer)
    if objection is not None:
        return f"{shared}, and {layer} stays as it is: {objection}"
    layout = _layout(layer, shape)
    action = f"normalise its input, {layout['features']} features"
    why = f"it reads {activation} of {call}"
    return _edit(layer, action, why, side="input", **layout, **options)


def _own_output(
    flow: Dataflow, call: Call, activation: Call, stretch: Stretch, options: Options
) -> Edit | str:
    assert call.module is not None
    assert activation.module is not None
    objection = objection_to_class(activation.module)
    if objection is not None:
        return f"{activation} stays as it is: {objection}"
    shape = flow.shapes[activation.outputs[0]]
    same_rank = len(shape) == len(flow.shapes[call.outputs[0]])
    if len(shape) != 2 and not (same_rank and stretch.keeps_axes[activation.index]):
        return f"axes move between it and {activation}: which of them holds the features is unsure"
    axis = 1 if len(shape) == 2 else _axis(call)
    layout = _at_axis(shape, axis, len(shape) if axis == 1 else None)
    like = {"like": call.name}  # an activation may have no parameters
    action = f"normalise {layout['features']} features"
    why = f"it follows {call}"
    return _edit(activation, action, why, side="output", **layout, **options, **like)


def _edit(call: Call, action: str, why: str, **options: Any) -> Edit:
    return Edit(call.name, call.kind, action, why, "own_batch_norm_at", options)


def _layout(call: Call, shape: tuple[int, ...]) -> dict[str, Any]:
    return _at_axis(shape, _axis(call), WEIGHT_LAYERS[layer_kind(call.module)])


def _at_axis(shape: tuple[int, ...], axis: int, rank: int | None) -> dict[str, Any]:
    return {"features": shape[axis], "axis": axis, "rank": rank}


def _axis(call: Call) -> int:
    return -1 if isinstance(call.module, nn.Linear) else 1
