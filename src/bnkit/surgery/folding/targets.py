"""Which weight layers can take a batch norm in, and why others stay as they are."""

import itertools
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import nn

from bnkit.dataflow import Call, Dataflow
from bnkit.internals import FORWARDS, has_hooks
from bnkit.surgery.eligibility import layer_kind
from bnkit.surgery.normalized import Normalized


def objection_to_layer(flow: Dataflow, call: Call, shared: Mapping[str, str]) -> str | None:
    """Return why this weight layer cannot take a batch norm in, or None.

    `shared` is that of `shared_parameters`.
    """
    assert call.module is not None
    calls, readers = flow.calls_of(call.name), flow.calls_reading(call.name)
    objection = _objection_to_parameters(call.module) or _objection_to_class(call.module)
    if objection is not None:
        return f"{call} stays as it is: {objection}"
    if len(calls) > 1:
        return f"{call} is called {len(calls)} times in one forward"
    if readers:
        return f"the parameters of {call} are read by {readers[0]}, too"
    if call.name in shared:
        return f"the parameters of {call} are shared with '{shared[call.name]}'"
    return None


def original_class(layer: nn.Module) -> type[nn.Module]:
    """Return the class of `layer`, or what it was before the layer owned a batch norm."""
    own = type(layer)
    return own.__bases__[1] if issubclass(own, Normalized) else own


def _objection_to_class(layer: nn.Module) -> str | None:
    kind, own = layer_kind(layer), original_class(layer)
    if any(getattr(own, name, None) is not getattr(kind, name, None) for name in FORWARDS):
        return "its class has a forward of its own"
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


def shared_parameters(model: nn.Module) -> dict[str, str]:
    """Return, by the path of each module with such parameters, another that holds them too."""
    holders: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)].append(path)
    return {
        path: other
        for paths in holders.values()
        for path, other in itertools.permutations(paths, 2)
    }
