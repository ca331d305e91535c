"""Which layer takes a batch norm in: the one before it, or the one after it; or why neither."""

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.behaviour import Affine, affine_of
from bnkit.dataflow import Call, Dataflow, Value, duplicate
from bnkit.internals import FORWARDS, has_hooks
from bnkit.observation import on_the_side
from bnkit.roles import can_own_batch_norm, layer_kind
from bnkit.surgery.folding.arithmetic import (
    after_layer,
    feature_axis,
    features_out,
    is_exact_before,
)
from bnkit.surgery.folding.candidates import Candidate, arguments_of
from bnkit.surgery.normalized import Normalized, NormalizedInput, NormalizedOutput

Side = Literal["before", "after"]  # where the layer is that takes the batch norm in
Place = tuple[Value, int]  # a value, and the axis on which the features lie


@dataclass(frozen=True, eq=False)
class Match:
    """A batch norm and the weight layer that takes it in.

    The layer stands on that `side` of it, `distance` calls away, of which the `averages` average or
    repeat values. Feature i of the layer is channel
    `features[i]` of the batch norm, −1 where none.
    """

    candidate: Candidate
    layer: Call
    side: Side
    features: Tensor
    distance: int = 0
    averages: tuple[str, ...] = ()


@dataclass
class Matcher:
    """Finds matches in a dataflow; `gone` are the batch norms that have become the identity."""

    flow: Dataflow
    shared: Mapping[str, str]  # as `shared_parameters` returns it
    gone: set[str] = field(default_factory=set)

    @cached_property
    def routes(self) -> "Routes":
        """The routes in the dataflow, made once for all batch norms."""
        return Routes(self.flow, self.gone)

    def before(self, candidate: Candidate) -> Match | str:
        """Return the match with the layer before the batch norm, or why there is none."""
        (call,) = candidate.calls
        if isinstance(call.module, NormalizedOutput):
            return self._owner(candidate, call, "before")
        value, axis = cast("Value", arguments_of(call)[0]), _axis_of(call)
        route = self.routes.before(value)
        if isinstance(route, str):
            return route
        layer = route.layer
        if isinstance(layer.module, NormalizedOutput):
            return f"the batch norm of {layer} stands between"
        start = _place(self.flow, layer, layer.outputs[0])
        features = self._ends(start, route.passages, (value, axis))
        if features is None:
            return f"a feature of {layer} does not stay in one channel of it"
        objection = objection_to_layer(self.flow, layer, self.shared, "before")
        return objection or _match(candidate, route, "before", features)

    def after(self, candidate: Candidate) -> Match | str:
        """Return the match with the layer after the batch norm, or why there is none."""
        if candidate.activation is not None or candidate.adds_residual:
            return f"it ends in {'a residual' if candidate.adds_residual else candidate.activation}"
        (call,) = candidate.calls
        if isinstance(call.module, NormalizedInput):
            return self._owner(candidate, call, "after")
        route = self.routes.after(call)
        if isinstance(route, str):
            return route
        layer = route.layer
        if isinstance(layer.module, NormalizedInput):
            return f"the batch norm of {layer} stands between"
        end = _place(self.flow, layer, layer.inputs[0])
        features = self._starts((call.outputs[0], _axis_of(call)), route.passages, end)
        if features is None:
            return f"a feature that {layer} reads does not come from one channel of it"
        return (
            objection_to_layer(self.flow, layer, self.shared, "after")
            or _objection_to_exactness(candidate, layer, features)
            or _match(candidate, route, "after", features)
        )

    def _owner(self, candidate: Candidate, owner: Call, side: Side) -> Match | str:
        if not can_own_batch_norm(owner.module):
            return f"it normalises what {owner} makes, which has no weight"
        features = torch.arange(len(affine_of(candidate.module).scale))
        return (
            objection_to_layer(self.flow, owner, self.shared, side)
            or (side == "after" and _objection_to_exactness(candidate, owner, features))
            or Match(candidate, owner, side, features)
        )

    def _ends(self, start: Place, passages: tuple[Call, ...], end: Place) -> Tensor | None:
        """Return in which index at the end each feature of the start lies."""
        shape, axis = self.flow.shapes[start[0]], start[1]
        if not passages and axis == end[1] % len(shape):
            return torch.arange(shape[axis])
        lie = followed(self.flow, passages, spread(shape, axis))
        return None if lie is None else one_end_each(lie, shape[axis], end[1])

    def _starts(self, start: Place, passages: tuple[Call, ...], end: Place) -> Tensor | None:
        """Return which feature of the start lies at each index of the end."""
        shape, axis = self.flow.shapes[start[0]], start[1] % len(self.flow.shapes[start[0]])
        if not passages and axis == end[1]:
            return torch.arange(shape[axis])
        lie = followed(self.flow, passages, spread(shape, axis))
        return None if lie is None else one_start_each(lie, end[1])


def _match(candidate: Candidate, route: "Route", side: Side, features: Tensor) -> Match:
    averages = tuple(str(call) for call in route.passages if is_averaging(call))
    return Match(candidate, route.layer, side, features, len(route.passages), averages)


def _axis_of(call: Call) -> int:
    return call.module.batchnorm_layout.axis if isinstance(call.module, Normalized) else 1


def _place(flow: Dataflow, layer: Call, value: Value) -> Place:
    """Return a value that a weight layer takes or makes, with its axis counted from the front."""
    assert layer.module is not None
    return value, len(flow.shapes[value]) + feature_axis(layer.module)


def _objection_to_exactness(candidate: Candidate, layer: Call, features: Tensor) -> str | None:
    affine = affine_of(candidate.module)
    if is_exact_before(layer.module, affine.take(features, like=affine.scale)):
        return None
    return f"{layer} pads with zeros or does not reach all places alike: no bias is its shift"


# --- the weight layers that can take one in


def objection_to_layer(
    flow: Dataflow, call: Call, shared: Mapping[str, str], side: Side
) -> str | None:
    """Return why this weight layer, on this side of a batch norm, cannot take it in, or None."""
    assert call.module is not None
    calls, readers = flow.calls_of(call.name), flow.calls_reading(call.name)
    objection = objection_to_module(call.module)
    if objection == _OWN_FORWARD and side == "before" and len(call.inputs) == 1:
        takes, makes = flow.shapes[call.inputs[0]], flow.shapes[call.outputs[0]]
        if _follows_its_weights(call.module, takes, makes):
            objection = None
    if objection is not None:
        return f"{call} stays as it is: {objection}"
    if len(calls) > 1:
        return f"{call} is called {len(calls)} times in one forward"
    if readers:
        return f"the parameters of {call} are read by {readers[0]}, too"
    if call.name in shared:
        return f"the parameters of {call} are shared with '{shared[call.name]}'"
    return None


def objection_to_module(layer: nn.Module) -> str | None:
    """Return why weight and bias of this layer do not say all that it computes, or None.

    >>> objection_to_module(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    'its weight or bias is computed (weight norm, spectral norm, pruning and the like)'
    """
    return _objection_to_parameters(layer) or _objection_to_class(layer)


def original_class(layer: nn.Module) -> type[nn.Module]:
    """Return the class of `layer`, or what it was before the layer owned a batch norm."""
    own = type(layer)
    return own.__bases__[1] if issubclass(own, Normalized) else own


def _objection_to_class(layer: nn.Module) -> str | None:
    kind, own = layer_kind(layer), original_class(layer)
    if any(getattr(own, name, None) is not getattr(kind, name, None) for name in FORWARDS):
        return _OWN_FORWARD
    if "forward" in vars(layer):
        return "its forward is set on the instance"
    return "hooks are registered on it" if has_hooks(layer) else None


def _objection_to_parameters(layer: Any) -> str | None:
    own = dict(layer.named_parameters(recurse=False))
    bias_is_own = layer.bias is None or "bias" in own
    if hasattr(layer, "parametrizations") or "weight" not in own or not bias_is_own:
        return "its weight or bias is computed (weight norm, spectral norm, pruning and the like)"
    if not own["weight"].is_floating_point():
        return f"its weight is {own['weight'].dtype}"
    return None


_OWN_FORWARD = "its class has a forward of its own"


def _follows_its_weights(layer: nn.Module, takes: tuple[int, ...], makes: tuple[int, ...]) -> bool:
    """Return whether a layer scales and shifts its output as its weight and bias are.

    A trial of a copy on a mini-batch of these shapes shows it, in float64: so it is for convs that
    pad by themselves, and not for those whose weights are standardised in each forward.
    """
    try:
        working: Any = duplicate(layer).double()
        x = torch.sin(1.7 * torch.arange(math.prod(takes), dtype=torch.float64)).view(takes)
        features = features_out(layer)
        scale = torch.linspace(0.5, 2, features, dtype=torch.float64)
        affine = Affine(scale, torch.zeros_like(scale), scale.flip(0) - 1)
        along = [1] * len(makes)
        along[feature_axis(layer)] = features
        with on_the_side(working):
            expected = working(x) * scale.view(along) + affine.offset.view(along)
            weight, bias = after_layer(working, affine)
            working.weight, working.bias = nn.Parameter(weight), nn.Parameter(bias)
            found = working(x)
    except Exception:  # noqa: BLE001  whatever a class of another library raises
        return False
    return found.shape == makes and torch.allclose(found, expected, rtol=1e-10, atol=1e-10)


# --- the routes to them, on which values move and do not change


# Modules and functions that move values, and change none in eval mode.
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_MODULES = {nn.Identity, nn.Flatten, nn.Unflatten, nn.FeatureAlphaDropout, *_DROPOUTS}
_FUNCTIONS = frozenset(
    """
    view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze transpose swapaxes
    swapdims permute movedim moveaxis t T mT contiguous clone __getitem__ select narrow
    """.split()
)
# What averages or repeats values, each channel for itself: an affine map of each channel passes
# through it where the weights of each average sum to 1, which is tried on ones.
_AVERAGES = {
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.Upsample, nn.UpsamplingNearest2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.UpsamplingBilinear2d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
}
_AVERAGING = frozenset(
    """
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    mean interpolate upsample pad pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle flip roll repeat_interleave
    """.split()
)
_FUNCTIONAL_DROPOUTS = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout".split()
)
_AS_STRIDES_ALLOW = {"view": "reshape", "view_as": "reshape_as"}  # they give the same values


@dataclass(frozen=True, eq=False)
class Route:
    """The calls that stand between a value and the weight layer that makes it or reads it."""

    layer: Call
    passages: tuple[Call, ...] = ()


@dataclass
class Routes:
    """Finds routes in a dataflow; `gone` are paths of modules that have become the identity."""

    flow: Dataflow
    gone: AbstractSet[str]
    makers: Mapping[Value, Call] = field(init=False)

    def __post_init__(self) -> None:
        self.makers = {value: call for call in self.flow.calls for value in call.outputs}

    def before(self, value: Value) -> Route | str:
        """Return the route from a weight layer to `value`, which one call reads; or why not."""
        passages: list[Call] = []
        while True:
            maker = self.makers.get(value)
            objection = self._objection_to_value(value, maker)
            if maker is None or objection is not None:
                return objection or "it reads an input of the model"
            if can_own_batch_norm(maker.module):
                return Route(maker, tuple(reversed(passages)))
            if not self._passes(maker):
                return f"{maker} stands between it and a weight layer"
            passages.append(maker)
            (value,) = maker.inputs

    def after(self, call: Call) -> Route | str:
        """Return the route from what `call` makes to the weight layer that reads it; or why not."""
        passages: list[Call] = []
        while True:
            objection = self._objection_to_value(call.outputs[0], call)
            if objection is not None:
                return objection
            (reader,) = self.flow.following(call)
            if can_own_batch_norm(reader.module):
                if len(reader.inputs) > 1:
                    return f"{reader} reads more than this one tensor"
                return Route(reader, tuple(passages))
            if not self._passes(reader):
                return f"{reader} stands between it and a weight layer"
            passages.append(reader)
            call = reader

    def _objection_to_value(self, value: Value, maker: Call | None) -> str | None:
        if maker is not None and (len(maker.outputs) != 1 or not isinstance(maker.result, Value)):
            return f"{maker} makes more than one tensor"
        name = "the input of the model" if maker is None else f"what {maker} makes"
        if value in self.flow.outputs:
            return f"{name} leaves the model"
        readers = self.flow.readers(value)
        if len(readers) > 1:
            return f"{name} is read by {readers[0]} and by {readers[1]}"
        return None if readers else f"bnkit cannot find what reads {name}"

    def _passes(self, call: Call) -> bool:
        if len(call.inputs) != 1 or len(call.outputs) != 1 or call.parameters:
            return False
        if call.module is None:
            moves = call.name in _FUNCTIONS or (
                call.name in _FUNCTIONAL_DROPOUTS and not _is_on(call)
            )
            return moves or (call.name in _AVERAGING and self._averages(call))
        if call.name in self.gone:
            return True
        if has_hooks(call.module) or "forward" in vars(call.module):
            return False
        kind = type(call.module)
        return kind in _MODULES or (kind in _AVERAGES and self._averages(call))

    def _averages(self, call: Call) -> bool:
        """Return whether the call keeps a constant, so that it keeps the shift of a map, too."""
        if _pads_by_a_constant(call):
            return False
        shape = self.flow.shapes[call.inputs[0]]
        try:
            made = _called(self.flow, call, torch.ones(shape, dtype=torch.float64))
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return False
        return torch.allclose(made, torch.ones_like(made), rtol=0, atol=1e-12)


def _pads_by_a_constant(call: Call) -> bool:
    """Return whether the call is `F.pad` with zeros or the like, unless it only cuts values away.

    One that adds nothing counts: it may for sizes that a window does not divide.
    """
    if call.module is not None or call.name != "pad":
        return False
    amounts, mode = (
        call.keywords.get(name, call.arguments[place] if len(call.arguments) > place else default)
        for name, place, default in (("pad", 1, ()), ("mode", 2, "constant"))
    )
    only_cuts = any(amounts) and all(type(amount) is int and amount <= 0 for amount in amounts)
    return mode == "constant" and not only_cuts


def _is_on(dropout: Call) -> bool:
    """Return whether a functional dropout drops: by training=True, its default."""
    given = dropout.arguments[2] if len(dropout.arguments) > 2 else True
    return bool(dropout.keywords.get("training", dropout.keywords.get("train", given)))


def followed(flow: Dataflow, passages: tuple[Call, ...], features: Tensor) -> Tensor | None:
    """Return where `features`, a tensor of feature numbers, lie after the passages; None if unsure.

    It goes the way of the values themselves, so any mixture of reshapes is followed exactly.
    """
    for call in passages:
        try:
            lies = _replayed(flow, call, features)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        if not isinstance(lies, Tensor):  # such as the parts of a split
            return None
        features = lies
    return features


def _replayed(flow: Dataflow, call: Call, features: Tensor) -> Any:
    if is_averaging(call):
        return _averaged(flow, call, features)
    moves = call.module is None or isinstance(call.module, nn.Flatten | nn.Unflatten)
    return _called(flow, call, features) if moves else features


def is_averaging(call: Call) -> bool:
    """Return whether the call averages or repeats values rather than only moving them."""
    return call.name in _AVERAGING if call.module is None else type(call.module) in _AVERAGES


def _averaged(flow: Dataflow, call: Call, features: Tensor) -> Tensor:
    """Return which feature each average is of; ValueError where it is of several."""
    numbers = features.double()
    mean, squares = _called(flow, call, numbers), _called(flow, call, numbers.square())
    if not torch.allclose(squares, mean.square(), rtol=1e-9, atol=1e-9):
        raise ValueError("several features meet in one average")
    return mean.round().long()


def _called(flow: Dataflow, call: Call, features: Tensor) -> Tensor:
    """Return what the call makes of other values than it was given."""
    if call.module is not None:
        with torch.no_grad():
            return call.module(features)  # type: ignore[no-any-return]
    if call.name in _FUNCTIONAL_DROPOUTS:
        return features

    def stand_in(part: Any) -> Any:
        if isinstance(part, Value):
            return features if part == call.inputs[0] else torch.empty(flow.shapes[part])
        return part

    keywords = {key: stand_in(part) for key, part in call.keywords.items()}
    arguments = [stand_in(part) for part in call.arguments]
    first = keywords.pop("input") if "input" in keywords else arguments.pop(0)
    if any(isinstance(part, torch.dtype) for part in (*arguments, *keywords.values())):
        raise TypeError("a view as another dtype is no reshape")
    name = _AS_STRIDES_ALLOW.get(call.name, call.name)
    function = getattr(Tensor, name, None) or getattr(F, name, None)
    if function is None:
        raise TypeError(f"{name} takes more than one tensor")
    if not callable(function):  # an attribute such as x.mT
        return getattr(first, call.name)  # type: ignore[no-any-return]
    return function(first, *arguments, **keywords)  # type: ignore[no-any-return]


def one_end_each(features: Tensor, count: int, axis: int) -> Tensor | None:
    """Return the index on `axis` at which each of `count` features lies; None if some have two.

    Those that lie nowhere get −1.

    >>> one_end_each(torch.tensor([[2, 2], [0, 0]]), 3, axis=0)
    tensor([ 1, -1,  0])
    """
    columns = features.movedim(axis, 0).flatten(1)
    ends = torch.arange(len(columns))[:, None].expand(columns.shape).flatten()
    where = columns.flatten()
    lowest = torch.full((count,), len(columns)).scatter_reduce(0, where, ends, "amin")
    highest = torch.full((count,), -1).scatter_reduce(0, where, ends, "amax")
    return highest if bool(((lowest == highest) | (highest == -1)).all()) else None


def one_start_each(features: Tensor, axis: int) -> Tensor | None:
    """Return the feature that lies at each index on `axis`; None if somewhere there are two.

    >>> one_start_each(torch.tensor([[2, 2], [0, 0]]), axis=0)
    tensor([2, 0])
    """
    columns = features.movedim(axis, 0).flatten(1)
    return columns[:, 0] if bool((columns == columns[:, :1]).all()) else None


def spread(shape: tuple[int, ...], axis: int) -> Tensor:
    """Return the number of each value's feature, for features on `axis` of this shape.

    >>> spread((2, 3), axis=1)
    tensor([[0, 1, 2],
            [0, 1, 2]])
    """
    ones = [1] * len(shape)
    ones[axis] = shape[axis]
    return torch.arange(shape[axis]).reshape(ones).expand(shape)
