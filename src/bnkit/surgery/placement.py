"""Where a batch norm goes: on a layer's output, its activation's, or the next layer's input."""

import functools
from collections.abc import Callable

from torch import nn

from bnkit.dataflow import Call, Dataflow
from bnkit.roles import WEIGHT_LAYERS, can_own_batch_norm
from bnkit.surgery.eligibility import layer_kind, objection_to_layer
from bnkit.surgery.normalized import Layout, NormalizedInput, NormalizedOutput
from bnkit.surgery.plan import Edit, LeftAlone
from bnkit.surgery.stretch import Stretch, next_weights

Own = Callable[..., None]  # own_batch_norm with the momentum and eps of the whole change


def before_activation(flow: Dataflow, call: Call, stretch: Stretch, own: Own) -> Edit:
    """Return the edit by which the layer of `call` normalises its output and loses its bias."""
    layout = _layout(call, flow.shapes[call.outputs[0]])

    def change(layer: nn.Module) -> None:
        own(layer, layout, place=NormalizedOutput)
        layer.register_parameter("bias", None)

    biased = getattr(call.module, "bias", None) is not None
    action = f"normalise {layout.features} features{', drop bias' if biased else ''}"
    return Edit(call.name, call.kind, action, f"{stretch.activations[0]} follows", change)


def after_activation(
    model: nn.Module, flow: Dataflow, chosen: list[tuple[Call, Stretch]], own: Own
) -> tuple[list[Edit], list[LeftAlone]]:
    """Return the edits that normalise what follows the activations of `chosen`, and the rest."""
    edits: dict[str, Edit] = {}
    refused = []
    for call, stretch in chosen:
        found = [_after(model, flow, (call, a), stretch, own) for a in stretch.activations]
        reasons = [reason for reason in found if isinstance(reason, str)]
        if reasons:
            refused.append(LeftAlone(call.name, call.kind, reasons[0]))
        else:
            edits |= {edit.layer: edit for edit in found if isinstance(edit, Edit)}
    return list(edits.values()), [left for left in refused if left.layer not in edits]


def _after(
    model: nn.Module, flow: Dataflow, pair: tuple[Call, Call], stretch: Stretch, own: Own
) -> Edit | str:
    """Return the edit for one (layer, activation), or why there is none."""
    call, activation = pair
    if activation.module is not None and len(flow.calls_of(activation.name)) == 1:
        return _own_output(flow, call, activation, stretch, own)
    functional = f"{activation} has no module of its own"
    layer = next_weights(flow, activation)
    if layer is None:
        return f"{functional}, and what it makes is not read by one weight layer alone"
    if not can_own_batch_norm(layer.module):
        return f"{functional}, and {layer} cannot own a batch norm"
    objection = objection_to_layer(model, flow, layer.name, layer.module)
    if objection is not None:
        return f"{functional}, and {layer} stays as it is: {objection}"
    layout = _layout(layer, flow.shapes[layer.inputs[0]])
    change = functools.partial(own, layout=layout, place=NormalizedInput)
    action = f"normalise its input, {layout.features} features"
    return Edit(layer.name, layer.kind, action, functional, change)


def _own_output(
    flow: Dataflow, call: Call, activation: Call, stretch: Stretch, own: Own
) -> Edit | str:
    shape = flow.shapes[activation.outputs[0]]
    if len(shape) != 2 and not stretch.keeps_axes[activation.index]:
        return f"axes move between it and {activation}: which of them holds the features is unsure"
    axis = 1 if len(shape) == 2 else _axis(call)
    layout = Layout(activation.name, shape[axis], axis, rank=len(shape) if axis == 1 else None)
    change = functools.partial(own, layout=layout, place=NormalizedOutput)
    action = f"normalise {layout.features} features"
    return Edit(activation.name, activation.kind, action, f"it follows {call}", change)


def _layout(call: Call, shape: tuple[int, ...]) -> Layout:
    axis = _axis(call)
    return Layout(call.name, shape[axis], axis, WEIGHT_LAYERS[layer_kind(call.module)])


def _axis(call: Call) -> int:
    return -1 if isinstance(call.module, nn.Linear) else 1
