"""`Step`: one step that is recorded, from its forward to its gradients."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.dataflow.tensors import tensors_in
from bnkit.monitoring.calls import Calls
from bnkit.monitoring.measuring import is_fused
from bnkit.monitoring.record import Record
from bnkit.monitoring.summary import Array, descriptions
from bnkit.observation import running_eagerly, seeing_gradients, watching_layers

_GRADIENTS = ("weight", "bias", "output")


class Step:
    """What the layers do in step `number`; `percentiles` are those of the record before, by path.

    It looks on from its making to `end_forward`, and at gradients to `close`. Of a layer that is
    called several times the first call counts.
    """

    def __init__(
        self, number: int, layers: Mapping[str, nn.Module], percentiles: Mapping[str, Array]
    ) -> None:
        self.number = number
        self.percentiles: dict[str, Array] = {}
        self._layers = layers
        self._before = percentiles
        self._calls = Calls()
        self._gradients: dict[str, dict[str, Tensor]] = {}
        self._expects_gradients = False
        self._forward, self._backward = ExitStack(), ExitStack()
        self._forward.enter_context(running_eagerly())
        self._forward.enter_context(
            watching_layers(layers, before=self._see_input, after=self._see_output)
        )

    @property
    def is_complete(self) -> bool:
        """Whether nothing more will come: the gradients have, or none will."""
        return bool(self._gradients) or not self._expects_gradients

    @property
    def variances(self) -> dict[str, Tensor]:
        """The variances of what the layers were given, (C,) each, by path."""
        return {p: v for channels in self._calls.seen() for p, v in channels.variances.items()}

    def end_forward(self) -> None:
        """Look at no more calls of layers."""
        self._forward.close()

    def close(self) -> None:
        """Look at nothing more."""
        self._forward.close()
        self._backward.close()

    def records(self) -> tuple[Record, ...]:
        """Return what was seen so far, a record for each layer that ran, in the order of running.

        On a GPU this waits for it.
        """
        described: dict[str, dict[str, Any]] = {}
        for channels in self._calls.seen():
            layers = [self._layers[path] for path in channels.paths]
            arrays = channels.arrays()
            now = dict(zip(channels.paths, arrays["percentiles"], strict=True))
            before = [self._before.get(path) for path in channels.paths]
            described |= zip(channels.paths, descriptions(layers, arrays, before), strict=True)
            self.percentiles |= now
        return tuple(self._record(path, described[path]) for path in self._calls.order)

    def _see_input(
        self, path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        values = _batch_in(args[0] if args else kwargs)
        if values is not None:
            self._calls.begin(path, layer, values, fused=is_fused(layer, args, kwargs))

    def _see_output(
        self, path: str, layer: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], out: Any
    ) -> None:
        output = _batch_in(out)
        if output is not None and self._calls.end(path, output):  # None is that of a failure
            self._await_gradients(path, layer, output)

    def _await_gradients(self, path: str, layer: Any, output: Tensor) -> None:
        tensors = {"weight": getattr(layer, "weight", None), "bias": getattr(layer, "bias", None)}
        if torch.is_grad_enabled():
            tensors["output"] = output
        awaited = {n: t for n, t in tensors.items() if isinstance(t, Tensor) and t.requires_grad}
        if awaited:
            self._expects_gradients = True
            see = partial(self._see_gradient, path)
            self._backward.enter_context(seeing_gradients(awaited, see))

    def _see_gradient(self, path: str, name: str, gradient: Tensor) -> None:
        dtype = torch.promote_types(gradient.dtype, torch.float32)  # norms of halves overflow
        norm = torch.linalg.vector_norm(gradient.detach(), dtype=dtype)
        self._gradients.setdefault(path, {}).setdefault(name, norm)

    def _record(self, path: str, described: dict[str, Any]) -> Record:
        gradients = self._gradients.get(path, {})
        for name in _GRADIENTS:
            described[f"{name}_gradient"] = float(gradients.get(name, math.nan))
        return Record(step=self.number, layer=path, **described)


def _batch_in(values: Any) -> Tensor | None:
    """Return the first tensor of floating values with channels in what a layer takes or gives."""
    tensors = [values] if isinstance(values, Tensor) else tensors_in(values)
    fitting = (t for t in tensors if t.is_floating_point() and t.dim() > 1 and t.numel())
    return next(fitting, None)
