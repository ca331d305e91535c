"""What batch norms are given and return: percentiles and moments of channels, kept as tensors.

So nothing waits for a GPU until a step is over.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnkit.dataflow.tensors import tensors_in
from bnkit.kernels.reference import batch_norm_inference
from bnkit.layers.batch_norm import GuardedBatchNorm
from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.layers.masked import MaskedBatchNorm
from bnkit.moments import Moments
from bnkit.monitoring.records import PERCENTS

# Values per channel that are sorted: the 15th percentile of so many independent normal values has
# a standard error of √(0.15 · 0.85 / 1024) / 0.233 = 0.05 standard deviations, a channel; over the
# channels most of it averages out.
_SAMPLE = 1024

# What `Channels` know beside percentiles, in the order of the table.
_ROWS = ("mean", "variance", "largest", "squared_error", "running_mean", "running_var", "weight")

# So few values in a call that calls of functions take longer than what they do with the values.
_FEW = 2**14

Running = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Given:
    """What batch norms are given: a sample (values, C), moments, those of its rows' means.

    Several layers may lie side by side in C.
    """

    sample: Tensor
    moments: Moments
    of_rows: Moments


@dataclass(frozen=True, eq=False)
class Channels:
    """What is known after a call of each of the C channels of each of L layers.

    `table` (13, L, C) has the 15th, 50th and 85th percentile of the input, then of the output; mean
    and variance of the input, the largest output, the squared error of the mean (NaN for a single
    row); running mean and variance from before and γ (NaN where there are none).
    """

    paths: tuple[str, ...]
    table: Tensor

    def arrays(self) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """Return all of it by names, in float64, (L, C); on a GPU this waits for it.

        `percentiles` are (L, 2, C, 3).
        """
        table = self.table.cpu().double().numpy()
        percentiles = table[:6].reshape(2, 3, *table.shape[1:]).transpose(2, 0, 3, 1)
        return {"percentiles": percentiles, **dict(zip(_ROWS, table[6:], strict=True))}

    @property
    def variances(self) -> dict[str, Tensor]:
        """The variances of what the layers were given, (C,) each, by path."""
        return dict(zip(self.paths, self.table[6 + _ROWS.index("variance")], strict=True))


# What a layer had, (3, C), and its input: as it is where that is few values, else what is known.
_Begun = tuple[nn.Module, bool, Tensor, Tensor | Given]
# Path, (3, C), copies of input and output.
_Small = tuple[str, Tensor, Tensor, Tensor]


class Calls:
    """What the first call of each layer was given and returned.

    Calls with many values are measured while they run, so that nothing large is kept. Of the others
    copies wait for `seen`, where layers of one shape lie side by side as if they were one.
    """

    def __init__(self) -> None:
        self.order: dict[str, None] = {}  # paths, as a set that keeps its order
        self._begun: dict[str, _Begun] = {}
        self._small: dict[Any, list[_Small]] = {}
        self._seen: list[Channels] = []

    def begin(self, path: str, layer: nn.Module, values: Tensor, *, fused: bool) -> None:
        """Look at the input `values` (N, C, ...) of a call, if it is the layer's first."""
        if path in self._begun or path in self.order:
            return
        few = values.numel() <= _FEW and not fused
        given = values.detach().clone() if few else look_at_input(values)
        self._begun[path] = layer, fused, look_at_state(layer, values), given

    def end(self, path: str, output: Tensor) -> bool:
        """Look at the output of a call, and return whether it is the layer's first."""
        if path not in self._begun:
            return False
        layer, fused, state, given = self._begun.pop(path)
        self.order[path] = None
        if isinstance(given, Tensor):
            kept = output.detach().clone()
            like = (given.shape, given.dtype, given.device, kept.shape, kept.dtype, state.dtype)
            self._small.setdefault(like, []).append((path, state, given, kept))
        else:
            table = look_at_output(given, output, fused_in=layer if fused else None)
            self._seen.append(_channels((path,), table, state))
        return True

    def seen(self) -> list[Channels]:
        """Return what is known of all calls that have ended."""
        for calls in self._small.values():
            paths, states, inputs, outputs = zip(*calls, strict=True)
            given = look_at_input(torch.cat(inputs, 1))
            table = look_at_output(given, torch.cat(outputs, 1))
            self._seen.append(_channels(paths, table, torch.cat(states, 1)))
        self._small.clear()
        return self._seen


def _channels(paths: tuple[str, ...], table: Tensor, states: Tensor) -> Channels:
    whole = torch.cat([table, states.to(table.dtype)])
    return Channels(paths, whole.reshape(len(whole), len(paths), -1))


def look_at_state(layer: Any, values: Tensor) -> Tensor:
    """Return a copy of running mean, running variance and γ, (3, C), for the input `values`.

    NaN stands for what there is not, and for what is not comparable with the input's moments.

    >>> look_at_state(nn.BatchNorm1d(1, affine=False), torch.ones(2, 1)).flatten()
    tensor([0., 1., nan])
    """
    shape = values.shape[1:2]
    running = None if isinstance(layer, MaskedBatchNorm) else running_statistics(layer)
    weight = getattr(layer, "weight", None)
    if running is None or running[0].shape != shape:  # one for each step of a recurrent layer
        running = 2 * (values.new_full(shape, math.nan, dtype=torch.float32),)
    if not isinstance(weight, Tensor):
        weight = torch.full_like(running[0], math.nan)
    return torch.stack([*running, weight.detach()])


def look_at_input(values: Tensor) -> Given:
    """Return what layers are given by `values` (N, C, ...), before they take them in.

    >>> look_at_input(torch.tensor([[3.0], [5.0]])).moments.mean.item()
    4.0
    """
    values = values.detach()
    moments = Moments.of(values)
    rows = Moments.of_rows(values) if values.dim() > 2 else moments
    return Given(_sample(values), moments, rows)


def look_at_output(given: Given, output: Tensor, *, fused_in: nn.Module | None = None) -> Tensor:
    """Return the first 10 rows of the table of `Channels`, (10, C), for the `output` (N, C, ...).

    Where the layer is `fused_in` with what follows it, `output` is behind the nonlinearity; the
    percentiles of what goes into that are then those of γx̂ + β, computed for the sample.
    """
    output, moments, rows = output.detach(), given.moments, given.of_rows
    after = _sample(output) if fused_in is None else _normalised(fused_in, given)
    error = rows.squared_error if rows.count > 1 else moments.mean * math.nan
    parts = [
        _percentiles(torch.stack([given.sample, after])).flatten(0, 1),
        moments.mean,
        moments.variance,
        output.amax([0, *range(2, output.dim())]),
        error,
    ]
    return torch.vstack([part.to(moments.mean.dtype) for part in parts])


def is_fused(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether this call of `layer` has more in it than batch norm.

    >>> is_fused(nn.BatchNorm1d(2), (torch.ones(2, 2),), {})
    False
    """
    return isinstance(layer, GuardedBatchNorm) and len(tensors_in((args, kwargs))) > 1


def running_statistics(layer: Any) -> Running | None:
    """Return the layer's running mean and variance, None where it has none yet or at all."""
    mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or is_lazy(mean):
        return None
    return mean, variance


def _normalised(layer: Any, given: Given) -> Tensor:
    mean, variance = given.moments.mean, given.moments.variance
    running = running_statistics(layer)
    by_running = isinstance(layer, FrozenBatchNorm) or not layer.training
    if by_running and running is not None and running[0].shape == mean.shape:
        mean, variance = running
    statistics = mean.to(given.sample), variance.to(given.sample)
    return batch_norm_inference(
        given.sample, *statistics, layer.weight, layer.bias, eps=float(layer.eps)
    )


def _sample(values: Tensor) -> Tensor:
    """Return evenly spread values of each channel of `values` (N, C, ...), as (values, C)."""
    if values.dim() == 2:
        return values[:: max(1, len(values) // _SAMPLE)].float()
    planes = values.flatten(2)  # (N, C, L)
    rows, _, length = planes.shape
    step = max(1, rows * length // _SAMPLE)
    while math.gcd(step, length) > 1:  # else all values are from the same few places
        step += 1
    places = torch.arange(0, rows * length, step, device=values.device)
    return planes[places // length, :, places % length].float()


def _percentiles(values: Tensor) -> Tensor:
    """Return the percentiles of `values` (2, values, C) as (2, 3, C)."""
    ranks = [round(percent / 100 * (values.shape[1] - 1)) for percent in PERCENTS]
    if values.is_cpu:  # numpy sorts with vector instructions, in a tenth of torch's time
        ordered = np.ascontiguousarray(values.numpy().swapaxes(1, 2))
        ordered.sort()
        return torch.from_numpy(ordered[..., ranks].swapaxes(1, 2))
    in_order = values.sort(1).values
    return torch.stack([in_order[:, rank] for rank in ranks], 1)
