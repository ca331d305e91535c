"""Which layers can own a batch norm, which places call for one, and why others do not."""

import itertools
from collections import defaultdict
from collections.abc import Iterator

from torch import nn

from bnkit.dataflow import Call, Dataflow, Value
from bnkit.roles import WEIGHT_LAYERS, Role, can_own_batch_norm, role_of_module
from bnkit.surgery.plan import LeftAlone
from bnkit.surgery.stretch import Stretch, role_of

# What a class may define to copy or pickle itself; the classes of own_batch_norm do, too.
_COPYING = ("__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__", "__getnewargs__")


def layer_kind(layer: nn.Module | None) -> type[nn.Module]:
    """Return the kind of weight layer that `layer` is: nn.Conv2d for any subclass of it."""
    return next(kind for kind in WEIGHT_LAYERS if isinstance(layer, kind))


def functional_layers(flow: Dataflow) -> Iterator[LeftAlone]:
    """Yield the dense and conv layers that are torch functions, which nothing can own for them."""
    for call in flow.calls:
        if call.module is None and role_of(call) is Role.WEIGHTS:
            yield LeftAlone(str(call), "function", "called without a module that could own it")


def objections_to_layers(model: nn.Module, flow: Dataflow) -> dict[str, str | None]:
    """Return, by its path, why each dense or conv layer itself cannot own a batch norm, or None."""
    shared = _shared_parameters(model)
    return {
        path: _objection_to_parameters(layer)
        or objection_to_class(layer)
        or _objection_to_use(flow, path)
        or _objection_to_parent(model.get_submodule(path.rpartition(".")[0]))
        or shared.get(path)
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
        return "not called on this example in eval mode"
    if len(calls) > 1:
        return f"called {len(calls)} times in one forward: its outputs have several distributions"
    if not isinstance(calls[0].result, Value):
        return f"it returns a {type(calls[0].result).__name__}: only one tensor can be normalised"
    return None


def _objection_to_parent(parent: nn.Module) -> str | None:
    if isinstance(parent, nn.TransformerEncoderLayer):
        return "in eval mode nn.TransformerEncoderLayer reads its weight and does not call it"
    return None


def _shared_parameters(model: nn.Module) -> dict[str, str]:
    holders: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)].append(path)
    return {
        path: f"its parameters are shared with '{other}'"
        for paths in holders.values()
        for path, other in itertools.permutations(paths, 2)
    }


def objection_to_place(flow: Dataflow, call: Call, stretch: Stretch) -> str | None:
    """Return why no batch norm belongs after this call, or None."""
    if stretch.leaves:
        return "output layer: its result leaves the model"
    if stretch.normalisations:
        return f"already normalised: {stretch.normalisations[0]} follows"
    if stretch.activations:
        return objection_to_shape("output", flow.shapes[call.outputs[0]], call)
    if stretch.others:
        return f"no activation follows: {stretch.others[0]} reads its output first"
    return "no activation follows: nothing that bnkit can see reads its output"


def objection_to_shape(side: str, shape: tuple[int, ...], call: Call) -> str | None:
    """Return why a tensor of this shape, on one side of a layer, is no mini-batch, or None."""
    kind = layer_kind(call.module)
    rank = WEIGHT_LAYERS[kind] or max(len(shape), 2)
    if len(shape) == rank:
        return None
    return f"its {side} of shape {shape} is no mini-batch: add a batch axis to the example"
