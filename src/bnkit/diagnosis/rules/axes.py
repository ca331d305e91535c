"""Where the features of a layer lie in what a batch norm normalises, and the rule on wrong axes."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from bnkit.dataflow import Call, Dataflow, Value
from bnkit.diagnosis.evidence import Evidence, Failure
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules.places import Chain, Makers, Place, layer_of, makers_of, places
from bnkit.norms import has_other_channels
from bnkit.roles import Role, can_own_batch_norm
from bnkit.surgery.folding.arithmetic import feature_axis
from bnkit.surgery.folding.matching import followed, one_end_each, spread
from bnkit.surgery.normalized import Normalized
from bnkit.surgery.segment import role_of

# Calls of several values that put each result where its first input lay, if the shapes agree.
_TOGETHER = frozenset(
    """
    add sub subtract mul multiply div divide true_divide __add__ __radd__ __iadd__ __sub__ __isub__
    __mul__ __rmul__ __imul__ __truediv__ where lerp addcmul
    """.split()
)


def wrong_axis(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms whose channels are not the features of the layer before, but time steps.

    In torch the channels are axis 1; dense and recurrent layers put their features last. It is an
    error where a mini-batch of another length makes the training fail.
    """
    flow = evidence.trained_flow
    if flow is None:
        return
    makers, failed = makers_of(flow), _failures_of_length(evidence)
    visited: set[str] = set()
    for place in places(evidence):
        found = None if place.path in visited else _source(flow, makers, place)
        if found is None:
            continue
        source, lie = found
        if not _is_across(lie) or not _has_channels(place, lie.shape[1]):
            continue
        visited.add(place.path)
        axis, failure = _axis_on_which_it_varies(lie), failed.get(place.path)
        fails = {} if failure is None else {"fails on mini-batch": failure.number}
        yield Finding(
            "wrong-axis",
            "info" if failure is None or evidence.in_eval_mode else "error",
            (place.path, layer_of(source)),
            {"channels": lie.shape[1], "features": lie.shape[axis], "their axis": axis, **fails},
            f"The channels of this batch norm, axis 1 of its input, are not the features of "
            f"{source}, which lie on axis {axis}: it takes the statistics of each position over "
            f"all features together"
            + (", and it fails on inputs of another length." if fails else ".")
            + (" A mixer of time steps may mean that." if not fails else ""),
            "If the features are meant, put them on axis 1 around it: "
            "x = bn(x.transpose(1, 2)).transpose(1, 2), with as many channels as features.",
        )


def _has_channels(place: Place, count: int) -> bool:
    """Return whether a layer has so many channels; one that has others reshapes its input."""
    module, shapes = (None, ()) if place.norm is None else (place.norm.module, place.norm.shapes)
    if module is not None and any(has_other_channels(module, shape) for shape in shapes[:1]):
        return False
    held = (getattr(module, name, None) for name in ("running_mean", "weight"))
    known = next((tensor for tensor in held if isinstance(tensor, Tensor)), None)
    return known is None or known.shape[-1] == count


def _failures_of_length(evidence: Evidence) -> Mapping[str, Failure]:
    """Return the first failure of each layer that another number of channels may have caused."""
    failures = (each for each in reversed(evidence.failures) if not each.lacks_values)
    return {each.layer: each for each in failures if each.layer is not None}


def _source(flow: Dataflow, makers: Makers, place: Place) -> tuple[Call, Tensor] | None:
    """Return the weight layer behind a batch norm's input, and where its features lie in that.

    Activations, normalisations and sums between leave each value where it was.
    """
    value, passages = place.value, list[Call]()
    while value is not None and (maker := makers.get(value)) is not None:
        if role_of(maker) is Role.WEIGHTS:
            if not maker.outputs or value != maker.outputs[0]:
                return None  # such as the last state of a recurrent layer
            features = spread(flow.shapes[value], _axis_of(flow, maker))
            lie = followed(flow, value, tuple(reversed(passages)), features)
            return None if lie is None or lie.dim() < 3 else (maker, lie)
        before = _kept_in_place(flow, maker, value)
        if before is None and role_of(maker) is Role.PASSTHROUGH and len(maker.inputs) == 1:
            passages.append(maker)
            (before,) = maker.inputs
        value = before
    return None


def _kept_in_place(flow: Dataflow, call: Call, value: Value) -> Value | None:
    """Return the input that lies where the result does, None where the call may move it."""
    before = next(iter(call.inputs), None)
    if before is None or flow.shapes[before] != flow.shapes[value]:
        return None
    stays = role_of(call) in (Role.ACTIVATION, Role.NORMALISATION) or call.name in _TOGETHER
    return before if stays else None


def _axis_of(flow: Dataflow, call: Call) -> int:
    """Return the axis on which this weight layer puts its features, counted from the front."""
    rank = len(flow.shapes[call.outputs[0]])
    owns = can_own_batch_norm(call.module) or (call.module is None and "conv" in call.name)
    return rank + _axis_of_features(call) if owns else rank - 1


def _is_across(lie: Tensor) -> bool:
    """Return whether each channel holds all features alike: which one lies where is another axis's.

    >>> _is_across(spread((2, 3, 4), axis=2)), _is_across(spread((2, 3, 4), axis=1))
    (True, False)
    """
    return lie.shape[1] > 1 and _varies(lie) and bool((lie == lie[:, :1]).all())


def _varies(lie: Tensor) -> bool:
    return bool((lie != lie.flatten()[0]).any())


def _axis_on_which_it_varies(lie: Tensor) -> int:
    axes = (axis for axis in range(2, lie.dim()) if _varies(lie.movedim(axis, 0)[:, 0, 0]))
    return next(axes, lie.dim() - 1)


def channels_of_features(flow: Dataflow, chain: Chain, place: Place) -> Tensor | None:
    """Return the channel of the batch norm in which each feature lies; None if two share one."""
    assert chain.start is not None
    shape = flow.shapes[chain.start.outputs[0]]
    axis = len(shape) + _axis_of_features(chain.start)
    if place.value is None or not chain.passages:
        own = isinstance(place.call.module, Normalized)
        same = own or axis == 1
        return torch.arange(shape[axis]) if same else None
    lie = followed(flow, chain.start.outputs[0], chain.passages, spread(shape, axis))
    channels = None if lie is None or lie.dim() < 2 else one_end_each(lie, shape[axis], 1)
    if channels is None:
        return None
    kept = channels[channels >= 0]
    return channels if len(torch.unique(kept)) == len(kept) else None


def _axis_of_features(call: Call) -> int:
    """Return the axis of its features in what a weight layer makes, counted from the end."""
    if call.module is not None:
        return feature_axis(call.module)
    return -1 if call.name == "linear" else -1 - int(call.name[4])  # conv2d: (N, C, H, W)
