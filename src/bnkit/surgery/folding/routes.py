"""Routes between a batch norm and a weight layer, on which values move and do not change."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.dataflow import Call, Dataflow, Value
from bnkit.internals import has_hooks
from bnkit.roles import can_own_batch_norm

# Modules and functions that move values, and change none in eval mode.
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_MODULES = {nn.Identity, nn.Flatten, nn.Unflatten, nn.FeatureAlphaDropout, *_DROPOUTS}
_FUNCTIONS = frozenset(
    """
    view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze transpose swapaxes
    swapdims permute movedim moveaxis t T mT contiguous clone __getitem__ select narrow
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
                return (
                    Route(reader, tuple(passages))
                    if len(reader.inputs) == 1
                    else _not_alone(reader)
                )
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
        return None if readers else f"nothing that bnkit can see reads {name}"

    def _passes(self, call: Call) -> bool:
        if len(call.inputs) != 1 or len(call.outputs) != 1 or call.parameters:
            return False
        if call.module is None:
            return call.name in _FUNCTIONS or (
                call.name in _FUNCTIONAL_DROPOUTS and not _is_on(call)
            )
        if call.name in self.gone:
            return True
        changed = has_hooks(call.module) or "forward" in vars(call.module)
        return type(call.module) in _MODULES and not changed


def _not_alone(reader: Call) -> str:
    return f"{reader} reads more than this one tensor"


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
            features = _replayed(flow, call, features)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None
    return features


def _replayed(flow: Dataflow, call: Call, features: Tensor) -> Tensor:
    if isinstance(call.module, nn.Flatten | nn.Unflatten):
        return call.module(features)  # type: ignore[no-any-return]
    if call.module is not None or call.name in _FUNCTIONAL_DROPOUTS:
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
    function = getattr(Tensor, _AS_STRIDES_ALLOW.get(call.name, call.name))
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
