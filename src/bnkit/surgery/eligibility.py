"""Which layers can own a batch norm, which places call for one, and why others do not."""

from collections.abc import Iterator

from torch import nn

from bnkit.dataflow import Call, Dataflow
from bnkit.roles import WEIGHT_LAYERS, Role, role_of_module
from bnkit.surgery.plan import LeftAlone
from bnkit.surgery.stretch import Stretch, role_of


def layer_kind(layer: nn.Module | None) -> type[nn.Module]:
    """Return the kind of weight layer that `layer` is: nn.Conv2d for any subclass of it."""
    return next(kind for kind in WEIGHT_LAYERS if isinstance(layer, kind))


def functional_layers(flow: Dataflow) -> Iterator[LeftAlone]:
    """Yield the dense and conv layers that are torch functions, which nothing can own for them."""
    for call in flow.calls:
        if call.module is None and role_of(call) is Role.WEIGHTS:
            yield LeftAlone(str(call), "function", "called without a module that could own it")


def objection_to_layer(  # noqa: PLR0911  one return an objection reads as a list
    model: nn.Module, flow: Dataflow, path: str, layer: nn.Module
) -> str | None:
    """Return why the layer itself cannot own a batch norm, or None."""
    calls = flow.calls_of(path)
    readers = [c for c in flow.calls if any(p.rpartition(".")[0] == path for p in c.parameters)]
    tied = _tied_to(model, path, layer)
    if readers:
        return f"its parameters are shared: {readers[0]} reads them too"
    if not calls:
        return "not called on this example"
    if len(calls) > 1:
        return f"called {len(calls)} times in one forward: its outputs have several distributions"
    if tied:
        return f"its weight is shared with '{tied}'"
    if hasattr(layer, "parametrizations"):
        return "its weight is parametrised (weight norm, spectral norm and the like)"
    if any(role_of_module(child) is Role.NORMALISATION for child in layer.modules()):
        return "already normalised, by a layer of its own"
    return "it has an attribute `batchnorm` of its own" if hasattr(layer, "batchnorm") else None


def _tied_to(model: nn.Module, path: str, layer: nn.Module) -> str | None:
    own = {id(p) for p in layer.parameters(recurse=False)}
    sharing = (
        other
        for other, module in model.named_modules()
        if other != path and any(id(p) in own for p in module.parameters(recurse=False))
    )
    return next(sharing, None)


def objection_to_place(flow: Dataflow, call: Call, stretch: Stretch) -> str | None:
    """Return why no batch norm belongs after this call, or None."""
    if stretch.leaves:
        return "output layer: its result leaves the model"
    if stretch.normalisations:
        return f"already normalised: {stretch.normalisations[0]} reads its output"
    if stretch.activations:
        shape = flow.shapes[call.outputs[0]]
        rank = WEIGHT_LAYERS[layer_kind(call.module)]
        return None if len(shape) == (rank or max(len(shape), 2)) else _unbatched(shape)
    if stretch.others:
        return f"no activation follows: {stretch.others[0]} reads its output first"
    return "no activation follows: nothing that bnkit can see reads its output"


def _unbatched(shape: tuple[int, ...]) -> str:
    return f"its output of shape {shape} has no batch axis: give an example with one"
