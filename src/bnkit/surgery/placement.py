"""Where a batch norm goes: on a layer's output, its activation's, or the next layer's input.

And which layers cannot own one, which places do not call for one, and why.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from bnkit.dataflow import Call, Dataflow, Value
from bnkit.internals import FORWARDS
from bnkit.parameters import shared_parameters
from bnkit.roles import WEIGHT_LAYERS, Role, can_own_batch_norm, layer_kind, role_of_module
from bnkit.surgery.operations import Edit
from bnkit.surgery.plan import LeftAlone
from bnkit.surgery.segment import Segment, next_weights, role_of

Options = Mapping[str, Any]  # momentum and eps, the same for the whole change


def before_activation(flow: Dataflow, call: Call, segment: Segment, options: Options) -> Edit:
    """Return the edit by which the layer of `call` normalises its output and loses its bias.

    A layer whose class has a forward of its own keeps the bias, which need not be redundant there.
    """
    layout = _layout(call, flow.shapes[call.outputs[0]])
    biased = getattr(call.module, "bias", None) is not None
    redundant = _has_forward_of_torch(call.module)
    bias = f", {'drop' if redundant else 'keep'} bias" if biased else ""
    action = f"normalise {layout['features']} features{bias}"
    follows = segment.activations[0] if segment.activations else None
    why = "a conv, and every one is chosen" if follows is None else f"{follows} follows"
    drop = {"drop_bias": biased and redundant}
    return _edit(call, action, why, side="output", **layout, **options, **drop)


def _has_forward_of_torch(layer: nn.Module | None) -> bool:
    kind = layer_kind(layer)
    return all(getattr(type(layer), name, None) is getattr(kind, name, None) for name in FORWARDS)


def after_activation(
    flow: Dataflow,
    chosen: list[tuple[Call, Segment]],
    objections: Mapping[str, str | None],
    options: Options,
) -> tuple[list[Edit], list[LeftAlone]]:
    """Return the edits that normalise what the activations after `chosen` make, and the rest."""
    edits: dict[str, Edit] = {}
    refused = []
    for call, segment in chosen:
        found = [_after(flow, (call, a), segment, objections, options) for a in segment.activations]
        reasons = [reason for reason in found if isinstance(reason, str)]
        if reasons:
            refused.append(LeftAlone(call.name, call.kind, reasons[0]))
        else:
            edits |= {edit.layer: edit for edit in found if isinstance(edit, Edit)}
    return list(edits.values()), refused


def _after(
    flow: Dataflow,
    pair: tuple[Call, Call],
    segment: Segment,
    objections: Mapping[str, str | None],
    options: Options,
) -> Edit | str:
    """Return the edit for one (layer, activation), or why there is none."""
    call, activation = pair
    uses = 0 if activation.module is None else len(flow.calls_of(activation.name))
    if uses == 1:
        return _own_output(flow, call, activation, segment, options)
    shared = f"{activation} is {f'called {uses} times' if uses else 'not a module'}"
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
    flow: Dataflow, call: Call, activation: Call, segment: Segment, options: Options
) -> Edit | str:
    assert call.module is not None
    assert activation.module is not None
    objection = objection_to_class(activation.module)
    if objection is not None:
        return f"{activation} stays as it is: {objection}"
    shape = flow.shapes[activation.outputs[0]]
    same_rank = len(shape) == len(flow.shapes[call.outputs[0]])
    if len(shape) != 2 and not (same_rank and segment.keeps_axes[activation.index]):
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


# --- which layers can own a batch norm, which places call for one, and why others do not


NOT_CALLED = "not called on this example in eval mode"

# What a class may define to copy or pickle itself; the classes of own_batch_norm do, too.
_COPYING = ("__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__", "__getnewargs__")


def functional_layers(flow: Dataflow) -> Iterator[LeftAlone]:
    """Yield the dense and conv layers that are torch functions, which nothing can own for them."""
    for call in flow.calls:
        if call.module is None and role_of(call) is Role.WEIGHTS:
            yield LeftAlone(str(call), "function", "called without a module that could own it")


def recurrent_layers(model: nn.Module) -> Iterator[LeftAlone]:
    """Yield torch's recurrent layers, in whose steps no batch norm can be put from outside."""
    for path, layer in model.named_modules():
        name = type(layer).__name__
        if isinstance(layer, nn.LSTM | nn.LSTMCell):
            cell = "Cell" if isinstance(layer, nn.LSTMCell) else ""
            why = f"recurrent: a bnkit.layers.BatchNormLSTM{cell} in its place normalises each step"
            yield LeftAlone(path, name, why)
        elif isinstance(layer, nn.GRU | nn.RNN | nn.GRUCell | nn.RNNCell):
            yield LeftAlone(path, name, "recurrent: of such layers bnkit.layers has LSTMs only")


def objections_to_layers(model: nn.Module, flow: Dataflow) -> dict[str, str | None]:
    """Return, by its path, why each dense or conv layer itself cannot own a batch norm, or None."""
    shared = shared_parameters(model)
    return {
        path: _objection_to_parameters(layer)
        or objection_to_class(layer)
        or _objection_to_use(flow, path)
        or _objection_to_parent(model.get_submodule(path.rpartition(".")[0]))
        or (f"its parameters are shared with '{shared[path]}'" if path in shared else None)
        for path, layer in model.named_modules()
        if can_own_batch_norm(layer)
    }


def objection_to_class(layer: nn.Module) -> str | None:
    """Return why this module cannot become one of a class that owns a batch norm, or None."""
    if hasattr(layer, "batchnorm"):
        return "it has a `batchnorm` already"
    if any(role_of_module(part) is Role.NORMALISATION for part in layer.modules()):
        return "already normalised, by a layer inside it"
    if "forward" in vars(layer):
        return "its forward is set on the instance, which would hide that of a class"
    if any(
        getattr(type(layer), name, None) is not getattr(nn.Module, name, None) for name in _COPYING
    ):
        return "its class defines how it is copied or pickled, which would lose a batch norm"
    return None


def _objection_to_parameters(layer: nn.Module) -> str | None:
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    if weight is None or hasattr(layer, "parametrizations"):
        return "its weight or bias is computed (weight norm, spectral norm, pruning and the like)"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}: batch norm is made for real numbers"
    return None


def _objection_to_use(flow: Dataflow, path: str) -> str | None:
    calls, readers = flow.calls_of(path), flow.calls_reading(path)
    if readers and not calls:
        return f"not called itself: {readers[0]} reads its parameters"
    if readers:
        return f"its parameters are shared: {readers[0]} reads them too"
    if not calls:
        return NOT_CALLED
    if len(calls) > 1:
        return f"called {len(calls)} times in one forward: its outputs have several distributions"
    if not isinstance(calls[0].result, Value):
        return f"it returns a {type(calls[0].result).__name__}: only one tensor can be normalised"
    return None


def _objection_to_parent(parent: nn.Module) -> str | None:
    if isinstance(parent, nn.TransformerEncoderLayer):
        return "in eval mode nn.TransformerEncoderLayer reads its weight and does not call it"
    return None


def objection_to_place(
    flow: Dataflow, call: Call, segment: Segment, *, every_conv: bool = False
) -> str | None:
    """Return why no batch norm belongs after this call, or None.

    `every_conv` lets one follow a conv without an activation, too.
    """
    if segment.leaves:
        return "output layer: its result leaves the model"
    if segment.normalisations:
        return f"already normalised: {segment.normalisations[0]} follows"
    is_conv = not isinstance(call.module, nn.Linear)
    if segment.activations or (every_conv and is_conv):
        return (
            objection_to_shape("output", flow.shapes[call.outputs[0]], call)
            or (_objection_to_one_place(flow, call) if is_conv else None)
            or _objection_to_gate(flow, segment)
        )
    if segment.others:
        return f"no activation follows: {segment.others[0]} reads its output first"
    return "no activation follows: bnkit cannot find what uses its output"


_GLOBAL_POOLINGS = ("adaptive", "mean", "amax")


def _objection_to_one_place(flow: Dataflow, conv: Call) -> str | None:
    """Return why a conv after a global pooling is left alone; None where it has several places.

    A conv whose output has one place only because the example is small is not left alone.
    """
    makers = {value: call for call in flow.calls for value in call.outputs}
    call: Call | None = conv
    while call is not None and _has_one_place(flow, call):
        spelled = call.name if call.module is None else type(call.module).__name__
        if spelled.lower().startswith(_GLOBAL_POOLINGS):
            return (
                f"its output has one place per sample, after {call}: a batch norm would get one "
                f"value per channel and sample"
            )
        call = makers.get(call.inputs[0]) if call.inputs else None
    return None


def _has_one_place(flow: Dataflow, call: Call) -> bool:
    shape = flow.shapes[call.outputs[0]] if call.outputs else ()
    return len(shape) > 2 and set(shape[2:]) == {1}


_GATES = frozenset(["sigmoid", "hardsigmoid", "softmax"])
_PRODUCTS = frozenset(["mul", "multiply", "__mul__", "__rmul__", "__imul__"])


def _objection_to_gate(flow: Dataflow, segment: Segment) -> str | None:
    """Return why a layer that opens and closes a gate is left alone; None for another layer."""
    if segment.others or not all(_is_gate(flow, activation) for activation in segment.activations):
        return None
    activation = next(iter(segment.activations), None)
    gate = f"a gate: {activation} follows, whose result only multiplies another value"
    return None if activation is None else gate


def _is_gate(flow: Dataflow, activation: Call) -> bool:
    called = activation.name if activation.module is None else type(activation.module).__name__
    readers = list(_beyond(flow, activation))
    return called.lower().rstrip("_") in _GATES and bool(readers) and all(map(_multiplies, readers))


def _beyond(flow: Dataflow, call: Call) -> Iterator[Call]:
    """Yield the readers of what `call` made, through those that only move or broadcast it."""
    for reader in flow.following(call):
        if role_of(reader) is Role.PASSTHROUGH and len(reader.inputs) == 1:
            yield from _beyond(flow, reader)
        else:
            yield reader


def _multiplies(call: Call) -> bool:
    return call.name.rstrip("_") in _PRODUCTS or call.name in _PRODUCTS


def objection_to_shape(side: str, shape: tuple[int, ...], call: Call) -> str | None:
    """Return why a tensor of this shape, on one side of a layer, is not a mini-batch, or None."""
    kind = layer_kind(call.module)
    rank = WEIGHT_LAYERS[kind] or max(len(shape), 2)
    if len(shape) == rank:
        return None
    return f"its {side} of shape {shape} is not a mini-batch: add a batch axis to the example"
