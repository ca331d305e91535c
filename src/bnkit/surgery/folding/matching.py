"""Which layers take a batch norm in: those before it, or the one after it; or why neither."""

import math
from collections import defaultdict
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
class Share:
    """What one weight layer takes in of a batch norm.

    Feature i of the layer is channel `features[i]` of the batch norm, −1 where none. Where outputs
    are summed, one layer takes the whole map and `shifts`, the others take the scale only.
    """

    layer: Call
    features: Tensor
    shifts: bool = True


@dataclass(frozen=True, eq=False)
class Match:
    """A batch norm and the weight layers that take it in.

    They stand on that `side` of it; several are on the side "before", where their outputs are
    joined, or where the batch norm is called several times. `passages` are the calls between.
    """

    candidate: Candidate
    side: Side
    shares: tuple[Share, ...]
    passages: tuple[Call, ...] = ()

    @property
    def unshifted(self) -> list[str]:
        """The paths of the layers that take in the scale only."""
        return [share.layer.name for share in self.shares if not share.shifts]


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
        """Return the match with the layers before the batch norm, or why there is none."""
        if isinstance(candidate.calls[0].module, NormalizedOutput):
            return self._owner(candidate, "before")
        shares: dict[str, Share] = {}
        calls: dict[str, set[Call]] = defaultdict(set)  # of each layer, from which routes lead here
        passages: dict[Call, None] = {}
        for number, call in enumerate(candidate.calls, start=1):
            at = f"at call {number}: " if len(candidate.calls) > 1 else ""
            end = cast("Value", arguments_of(call)[0]), _axis_of(call)
            routes = self.routes.before(end[0])
            if isinstance(routes, str):
                return at + routes
            for route in routes:
                share = self._share(route, end)
                if isinstance(share, str):
                    return at + share
                known = shares.setdefault(route.layer.name, share)
                if known.shifts != share.shifts or not torch.equal(known.features, share.features):
                    return f"{at}{route.layer} would have to take in two maps of it"
                calls[route.layer.name].add(route.layer)
                passages |= dict.fromkeys(route.passages)
        for name, share in shares.items():
            objection = objection_to_layer(
                self.flow, share.layer, self.shared, "before", calls=len(calls[name])
            )
            if objection is not None:
                return objection
        return Match(candidate, "before", tuple(shares.values()), tuple(passages))

    def after(self, candidate: Candidate) -> Match | str:
        """Return the match with the layer after the batch norm, or why there is none."""
        if candidate.activation is not None or candidate.adds_residual:
            return f"it ends in {'a residual' if candidate.adds_residual else candidate.activation}"
        call, *more = candidate.calls
        if isinstance(call.module, NormalizedInput):
            return self._owner(candidate, "after")
        many = f"called {len(candidate.calls)} times in one forward"
        route = many if more else self.routes.after(call)
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
            or Match(candidate, "after", (Share(layer, features),), route.passages)
        )

    def _share(self, route: "Route", end: Place) -> Share | str:
        layer = route.layer
        if isinstance(layer.module, NormalizedOutput):
            return f"the batch norm of {layer} stands between"
        start = _place(self.flow, layer, layer.outputs[0])
        features = self._ends(start, route.passages, end)
        if features is None:
            return f"a feature of {layer} does not stay in one channel of it"
        return Share(layer, features, route.shifts)

    def _owner(self, candidate: Candidate, side: Side) -> Match | str:
        owner, calls = candidate.calls[0], len(candidate.calls)
        if not can_own_batch_norm(owner.module):
            return f"it normalises what {owner} makes, which has no weight"
        features = torch.arange(len(affine_of(candidate.module).scale))
        return (
            objection_to_layer(self.flow, owner, self.shared, side, calls=calls)
            or (side == "after" and _objection_to_exactness(candidate, owner, features))
            or Match(candidate, side, (Share(owner, features),))
        )

    def _ends(self, start: Place, passages: tuple[Call, ...], end: Place) -> Tensor | None:
        """Return in which index at the end each feature of the start lies."""
        shape, axis = self.flow.shapes[start[0]], start[1]
        if not passages and axis == end[1] % len(shape):
            return torch.arange(shape[axis])
        lie = followed(self.flow, start[0], passages, spread(shape, axis))
        return None if lie is None else one_end_each(lie, shape[axis], end[1])

    def _starts(self, start: Place, passages: tuple[Call, ...], end: Place) -> Tensor | None:
        """Return which feature of the start lies at each index of the end."""
        shape, axis = self.flow.shapes[start[0]], start[1] % len(self.flow.shapes[start[0]])
        if not passages and axis == end[1]:
            return torch.arange(shape[axis])
        lie = followed(self.flow, start[0], passages, spread(shape, axis))
        return None if lie is None else one_start_each(lie, end[1])


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
    flow: Dataflow, call: Call, shared: Mapping[str, str], side: Side, *, calls: int = 1
) -> str | None:
    """Return why this weight layer, on this side of a batch norm, cannot take it in, or None.

    `calls` is how many calls of the layer lead to the batch norm, or come from it.
    """
    assert call.module is not None
    all_calls, readers = len(flow.calls_of(call.name)), flow.calls_reading(call.name)
    objection = objection_to_module(call.module)
    if objection == _OWN_FORWARD and side == "before" and len(call.inputs) == 1:
        takes, makes = flow.shapes[call.inputs[0]], flow.shapes[call.outputs[0]]
        if _follows_its_weights(call.module, takes, makes):
            objection = None
    if objection is not None:
        return f"{call} stays as it is: {objection}"
    if all_calls > calls:
        return f"{call} is called {all_calls} times in one forward"
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
# What joins several tensors. A scale passes through both kinds; the shift passes into every tensor
# of a concatenation, and into the first one of a sum or difference only.
_CONCATENATING = frozenset("cat concat concatenate".split())
_SUMMING = frozenset(
    "add add_ __add__ __radd__ __iadd__ sub sub_ subtract __sub__ __isub__".split()
)
_FUNCTIONAL_DROPOUTS = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout".split()
)
_AS_STRIDES_ALLOW = {"view": "reshape", "view_as": "reshape_as"}  # they give the same values


@dataclass(frozen=True, eq=False)
class Route:
    """The calls that stand between a value and the weight layer that makes it or reads it.

    `shifts` is whether a shift of the value is one of what the layer makes: not where another layer
    has made the first tensor of a sum between them.
    """

    layer: Call
    passages: tuple[Call, ...] = ()
    shifts: bool = True


@dataclass
class Routes:
    """Finds routes in a dataflow; `gone` are paths of modules that have become the identity."""

    flow: Dataflow
    gone: AbstractSet[str]
    makers: Mapping[Value, Call] = field(init=False)

    def __post_init__(self) -> None:
        self.makers = {value: call for call in self.flow.calls for value in call.outputs}

    def before(self, value: Value) -> tuple[Route, ...] | str:
        """Return the routes from weight layers to `value`, which one call reads; or why not.

        There are several where calls between join what several layers make.
        """
        passages: list[Call] = []
        while True:
            maker = self.makers.get(value)
            objection = self._objection_to_value(value, maker)
            if maker is None or objection is not None:
                return objection or "it reads an input of the model"
            if can_own_batch_norm(maker.module):
                return (Route(maker, tuple(reversed(passages))),)
            if is_joining(maker):
                return self._before_join(maker, tuple(reversed(passages)))
            if not self._passes(maker):
                return f"{maker} stands between it and a weight layer"
            passages.append(maker)
            (value,) = maker.inputs

    def _before_join(self, join: Call, passages: tuple[Call, ...]) -> tuple[Route, ...] | str:
        routes: list[Route] = []
        for number, value in enumerate(_joined(join), start=1):
            found = self.before(value) if type(value) is Value else "no layer makes it"
            if isinstance(found, str):
                return f"input {number} of {join}: {found}"
            takes_shift = number == 1 or not is_summing(join)
            routes += [
                Route(r.layer, (*r.passages, join, *passages), r.shifts and takes_shift)
                for r in found
            ]
        return tuple(routes)

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


def followed(
    flow: Dataflow, value: Value, passages: tuple[Call, ...], features: Tensor
) -> Tensor | None:
    """Return where `features`, the numbers of those in `value`, lie after the passages.

    It goes the way of the values themselves, so any mixture of reshapes is followed exactly. What
    is joined to them has the number −1. None if unsure.
    """
    for call in passages:
        try:
            lies = _replayed(flow, call, value, features)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
        if not isinstance(lies, Tensor):  # such as the parts of a split
            return None
        features, value = lies, call.outputs[0]
    return features


def _replayed(flow: Dataflow, call: Call, value: Value, features: Tensor) -> Any:
    if is_summing(call):
        return features.expand(flow.shapes[call.outputs[0]])
    if is_joining(call):
        others = features.new_tensor(-1)
        joined = [features if v == value else others.expand(flow.shapes[v]) for v in _joined(call)]
        axis = call.keywords.get("dim", call.keywords.get("axis", 0))
        return torch.cat(joined, *(call.arguments[1:] or [axis]))
    if is_averaging(call):
        return _averaged(flow, call, features)
    moves = call.module is None or isinstance(call.module, nn.Flatten | nn.Unflatten)
    return _called(flow, call, features) if moves else features


def is_joining(call: Call) -> bool:
    """Return whether the call concatenates, adds or subtracts tensors."""
    return is_summing(call) or (call.module is None and call.name in _CONCATENATING)


def is_summing(call: Call) -> bool:
    """Return whether the call adds or subtracts tensors."""
    return call.module is None and call.name in _SUMMING


def _joined(call: Call) -> list[Any]:
    """Return what the call joins, in order: values, and whatever else it is given."""
    if not is_summing(call):
        return [*(call.arguments[0] if call.arguments else call.keywords["tensors"])]
    named = [call.keywords[name] for name in ("input", "other") if name in call.keywords]
    first, second = *call.arguments[:2], *named
    is_nothing = type(second) in (int, float) and second == 0  # as sum() of a list begins
    return [first] if is_nothing else [first, second]


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

    Those that lie nowhere get −1, which is also the number of what is none of them.

    >>> one_end_each(torch.tensor([[2, 2], [0, 0]]), 3, axis=0)
    tensor([ 1, -1,  0])
    """
    columns = features.movedim(axis, 0).flatten(1)
    ends = torch.arange(len(columns))[:, None].expand(columns.shape).flatten()
    where = columns.flatten() + 1  # what has no number comes first, and is left out
    lowest = torch.full((1 + count,), len(columns)).scatter_reduce(0, where, ends, "amin")[1:]
    highest = torch.full((1 + count,), -1).scatter_reduce(0, where, ends, "amax")[1:]
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
