"""Which activation a batch norm may compute as its own: the one that alone reads what it makes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from bnkit.dataflow import Call, Dataflow, ExampleError, duplicate, observe
from bnkit.dataflow.tracing import observe_in_its_mode
from bnkit.internals import has_hooks
from bnkit.kernels.activations import LEAKY_SLOPE
from bnkit.observation import set_mode
from bnkit.roles import Role
from bnkit.surgery.normalized import NormalizedOutput
from bnkit.surgery.stretch import role_of

NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}


@dataclass(frozen=True)
class Modes:
    """The dataflows of a model in eval and in training mode; the latter may have failed."""

    evaluating: Dataflow
    training: Dataflow | None

    @classmethod
    def of(cls, model: nn.Module, example: Any) -> "Modes":
        """Return both; raises ExampleError if the model fails on `example` in eval mode."""
        evaluating = observe(duplicate(model), example)
        try:
            return cls(
                evaluating, observe_in_its_mode(set_mode(duplicate(model), training=True), example)
            )
        except ExampleError:  # such as one value per channel, of an example of one
            return cls(evaluating, None)

    def flows(self) -> Iterator[Dataflow]:
        """Yield those that there are."""
        yield self.evaluating
        if self.training is not None:
            yield self.training


def activation_after(modes: Modes, path: str, layer: nn.Module) -> tuple[Call | None, str]:
    """Return the call of the activation to fuse and why, or None and why not."""
    if getattr(layer, "activation", None) is not None:
        return None, "it has an activation"
    if has_hooks(layer, before=False):
        return None, "a hook looks at what it makes"
    found = [_reader(flow, path) for flow in modes.flows()]
    for call, reason in found:
        if call is None:
            return None, reason
    names = {call.name for call, _ in found if call is not None}
    if len(names) > 1:
        return None, f"in training mode '{found[1][0].name}' reads it instead"  # type: ignore[union-attr]
    suffix = "" if modes.training else " (seen in eval mode: training fails on the example)"
    return found[0][0], f"it alone reads what the layer makes{suffix}"


def _reader(flow: Dataflow, path: str) -> tuple[Call | None, str]:
    calls = _calls_ending_in(flow, path)
    if len(calls) != 1:
        return None, f"called {len(calls)} times" if calls else "not called on this example"
    readers = list(flow.following(calls[0]))
    if flow.leaves(calls[0]) or len(readers) != 1:
        return None, "several read what it makes" if readers else "nothing reads what it makes"
    (reader,) = readers
    if role_of(reader) is not Role.ACTIVATION:
        return None, f"no activation follows, but {reader}"
    return _fusible(flow, reader)


def _calls_ending_in(flow: Dataflow, path: str) -> list[Call]:
    """Return the calls that return what the batch norm at `path` makes."""
    own = list(flow.calls_of(path))
    owner, _, name = path.rpartition(".")
    if name == "batchnorm":  # inside of a layer that add or insert made, which ends in it
        own += [c for c in flow.calls_of(owner) if isinstance(c.module, NormalizedOutput)]
    return own


def _fusible(flow: Dataflow, activation: Call) -> tuple[Call | None, str]:
    module = activation.module
    if module is None:
        return None, f"{activation} is no module, and twice is no faster"
    if len(flow.calls_of(activation.name)) > 1:
        return None, f"{activation} serves several places, and twice is no faster"
    if type(module) not in NAMES or not _has_default_form(module):
        return None, f"{activation} is none of those that bnkit computes"
    if has_hooks(module):
        return None, f"a hook looks at {activation}"
    return activation, ""


def _has_default_form(module: nn.Module) -> bool:
    slope = getattr(module, "negative_slope", LEAKY_SLOPE)
    return slope == LEAKY_SLOPE and getattr(module, "approximate", "none") == "none"
