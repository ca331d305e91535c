"""`Step`: one step that is recorded, from its forward to its gradients."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.dataflow.tensors import tensors_in
from bnkit.monitoring.measuring import Channels, Given, is_fused, look_at_input, look_at_output
from bnkit.monitoring.record import Percentiles, Record
from bnkit.monitoring.summary import Array, drift, lag, never_positive, switched_off, typical
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
        self._given: dict[str, Given] = {}
        self._channels: dict[str, Channels] = {}
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
        return {path: channels.variance for path, channels in self._channels.items()}

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
        return tuple(self._record(path) for path in self._channels)

    def _see_input(
        self, path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        values = _batch_in(args[0] if args else kwargs)
        if values is not None and not {path} & (self._given.keys() | self._channels.keys()):
            self._given[path] = look_at_input(layer, values)

    def _see_output(
        self, path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        output = _batch_in(out)
        if path in self._channels or path not in self._given or output is None:
            return  # an output of None is that of a layer that failed
        given, fused = self._given.pop(path), is_fused(layer, args, kwargs)
        self._channels[path] = look_at_output(layer, given, output, fused=fused)
        self._await_gradients(path, layer, output)

    def _await_gradients(self, path: str, layer: Any, output: Tensor) -> None:
        tensors = {name: getattr(layer, name, None) for name in _GRADIENTS[:2]} | {"output": output}
        awaited = {name: t for name, t in tensors.items() if isinstance(t, Tensor)}
        if not torch.is_grad_enabled():
            awaited.pop("output")
        self._expects_gradients |= any(t.requires_grad for t in awaited.values())
        self._backward.enter_context(seeing_gradients(awaited, partial(self._see_gradient, path)))

    def _see_gradient(self, path: str, name: str, gradient: Tensor) -> None:
        dtype = torch.promote_types(gradient.dtype, torch.float32)  # norms of halves overflow
        norm = torch.linalg.vector_norm(gradient.detach(), dtype=dtype)
        self._gradients.setdefault(path, {}).setdefault(name, norm)

    def _record(self, path: str) -> Record:
        layer, channels = self._layers[path], self._channels[path].arrays()
        percentiles = channels["percentiles"]
        assert percentiles is not None
        assert channels["largest"] is not None
        self.percentiles[path] = percentiles
        eps, momentum = (getattr(layer, name, None) or 0.0 for name in ("eps", "momentum"))
        input_percentiles, output_percentiles = typical(percentiles).tolist()
        input_drift, output_drift = drift(percentiles, self._before.get(path)).tolist()
        off, by_chance = lag(channels, eps, momentum)
        gradients = self._gradients.get(path, {})
        return Record(
            step=self.number,
            layer=path,
            input=_three(input_percentiles),
            output=_three(output_percentiles),
            input_drift=input_drift,
            output_drift=output_drift,
            lag=off,
            lag_by_chance=by_chance,
            never_positive=never_positive(channels["largest"]),
            switched_off=switched_off(channels["weight"]),
            **{f"{name}_gradient": float(gradients.get(name, math.nan)) for name in _GRADIENTS},
        )


def _three(values: list[float]) -> Percentiles:
    return values[0], values[1], values[2]


def _batch_in(values: Any) -> Tensor | None:
    """Return the first tensor of floating values with channels in what a layer takes or gives."""
    tensors = [values] if isinstance(values, Tensor) else tensors_in(values)
    fitting = (t for t in tensors if t.is_floating_point() and t.dim() > 1 and t.numel())
    return next(fitting, None)
