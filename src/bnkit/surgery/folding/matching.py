"""Which layer takes a batch norm in: the one before it, or the one after it; or why neither."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from bnkit.dataflow import Call, Dataflow, Value
from bnkit.roles import can_own_batch_norm
from bnkit.surgery.folding.application import Side
from bnkit.surgery.folding.arithmetic import affine_of, feature_axis, is_exact_before
from bnkit.surgery.folding.routes import (
    Routes,
    followed,
    one_end_each,
    one_start_each,
    spread,
)
from bnkit.surgery.folding.sites import Site, arguments_of
from bnkit.surgery.folding.targets import objection_to_layer
from bnkit.surgery.normalized import Normalized, NormalizedInput, NormalizedOutput

Place = tuple[Value, int]  # a value, and the axis on which the features lie


@dataclass(frozen=True, eq=False)
class Match:
    """A batch norm and the weight layer that takes it in.

    The layer stands on that `side` of it, `distance` calls away. Feature i of the layer is channel
    `features[i]` of the batch norm, −1 where none.
    """

    site: Site
    layer: Call
    side: Side
    features: Tensor
    distance: int = 0


@dataclass
class Matcher:
    """Finds matches in a dataflow; `gone` are the batch norms that have become the identity.

    `shared` is that of `shared_parameters`.
    """

    flow: Dataflow
    shared: Mapping[str, str]
    gone: set[str] = field(default_factory=set)

    def before(self, site: Site) -> Match | str:
        """Return the match with the layer before the batch norm, or why there is none."""
        (call,) = site.calls
        if isinstance(call.module, NormalizedOutput):
            return self._owner(site, call, "before")
        value, axis = _input_of(call)
        route = Routes(self.flow, self.gone).before(value)
        if isinstance(route, str):
            return route
        layer = route.layer
        if isinstance(layer.module, NormalizedOutput):
            return f"the batch norm of {layer} stands between"
        start = _place(self.flow, layer, layer.outputs[0])
        features = self._ends(start, route.passages, (value, axis))
        if features is None:
            return f"a feature of {layer} does not stay in one channel of it"
        objection = objection_to_layer(self.flow, layer, self.shared)
        return objection or Match(site, layer, "before", features, len(route.passages))

    def after(self, site: Site) -> Match | str:
        """Return the match with the layer after the batch norm, or why there is none."""
        if site.activation is not None or site.adds_residual:
            return f"it ends in {'a residual' if site.adds_residual else site.activation}"
        (call,) = site.calls
        if isinstance(call.module, NormalizedInput):
            return self._owner(site, call, "after")
        route = Routes(self.flow, self.gone).after(call)
        if isinstance(route, str):
            return route
        layer = route.layer
        if isinstance(layer.module, NormalizedInput):
            return f"the batch norm of {layer} stands between"
        end = _place(self.flow, layer, layer.inputs[0])
        features = self._starts(_output_of(call), route.passages, end)
        if features is None:
            return f"a feature that {layer} reads does not come from one channel of it"
        return (
            objection_to_layer(self.flow, layer, self.shared)
            or _objection_to_exactness(site, layer, features)
            or Match(site, layer, "after", features, len(route.passages))
        )

    def _owner(self, site: Site, owner: Call, side: Side) -> Match | str:
        if not can_own_batch_norm(owner.module):
            return f"it normalises what {owner} makes, which has no weight"
        features = torch.arange(len(affine_of(site.module).scale))
        return (
            objection_to_layer(self.flow, owner, self.shared)
            or (side == "after" and _objection_to_exactness(site, owner, features))
            or Match(site, owner, side, features)
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


def _input_of(call: Call) -> Place:
    """Return what the batch norm of this call normalises."""
    axis = call.module.batchnorm_layout.axis if isinstance(call.module, Normalized) else 1
    return cast("Value", arguments_of(call)[0]), axis


def _output_of(call: Call) -> Place:
    axis = call.module.batchnorm_layout.axis if isinstance(call.module, Normalized) else 1
    return call.outputs[0], axis


def _place(flow: Dataflow, layer: Call, value: Value) -> Place:
    """Return a value that a weight layer takes or makes, with its axis counted from the front."""
    assert layer.module is not None
    return value, len(flow.shapes[value]) + feature_axis(layer.module)


def _objection_to_exactness(site: Site, layer: Call, features: Tensor) -> str | None:
    affine = affine_of(site.module)
    if is_exact_before(layer.module, affine.take(features, like=affine.scale)):
        return None
    return f"{layer} pads with zeros or does not reach all places alike: no bias is its shift"
