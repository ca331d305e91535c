"""What is looked at while a batch norm runs: tensors, so that nothing waits for a GPU."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnkit.dataflow.tensors import tensors_in
from bnkit.kernels.reference import batch_norm_inference
from bnkit.layers.batch_norm import ActivatedBatchNorm
from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.layers.masked import MaskedBatchNorm
from bnkit.moments import Moments, dtype_of_sums
from bnkit.monitoring.record import PERCENTS

# Values per channel that are sorted: the 15th percentile of so many independent normal values has
# a standard error of √(0.15 · 0.85 / 1024) / 0.233 = 0.05 standard deviations, a channel; over the
# channels most of it averages out.
_SAMPLE = 1024

Running = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Given:
    """What a batch norm is given: a sample (values, C), moments, those of its rows' means.

    `running` are copies of its running mean and variance from before, (C,), None where these are
    not comparable with the moments.
    """

    sample: Tensor
    moments: Moments
    of_rows: Moments
    running: Running | None


@dataclass(frozen=True, eq=False)
class Channels:
    """What is known of each channel of a layer after a call; (C,) but for `percentiles`, (2, C, 3).

    `squared_error` is that of the mean, None for a single row; `largest` is that of the output.
    """

    percentiles: Tensor
    mean: Tensor
    variance: Tensor
    largest: Tensor
    squared_error: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None

    def arrays(self) -> dict[str, np.ndarray[Any, np.dtype[np.float64]] | None]:
        """Return all of them in float64 by their names; on a GPU this waits for it."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return {n: None if t is None else t.cpu().double().numpy() for n, t in tensors.items()}


def look_at_input(layer: nn.Module, values: Tensor) -> Given:
    """Return what `layer` is given by `values` (N, C, ...), before it takes them in.

    >>> look_at_input(nn.BatchNorm1d(1), torch.tensor([[3.0], [5.0]])).moments.mean.item()
    4.0
    """
    values = values.detach()
    moments = Moments.of(values)
    rows = Moments.of(_means_of_rows(values)) if values.dim() > 2 else moments
    running = None if isinstance(layer, MaskedBatchNorm) else running_statistics(layer)
    if running is not None:
        fits = running[0].shape == moments.mean.shape  # else one for each step of a recurrent layer
        running = (running[0].clone(), running[1].clone()) if fits else None
    return Given(_sample(values), moments, rows, running)


def look_at_output(layer: nn.Module, given: Given, output: Tensor, *, fused: bool) -> Channels:
    """Return what is known of each channel, given the `output` (N, C, ...) of the layer.

    Where the layer is `fused` with what follows it, `output` is behind the nonlinearity; the
    percentiles of what goes into that are then those of γx̂ + β, computed for the sample.
    """
    output, weight = output.detach(), getattr(layer, "weight", None)
    after = _normalised(layer, given) if fused else _sample(output)
    values = _sorted(torch.stack([given.sample, after]).transpose(1, 2))  # (2, C, values)
    ranks = [round(percent / 100 * (values.shape[-1] - 1)) for percent in PERCENTS]
    rows = given.of_rows
    running_mean, running_var = given.running or (None, None)
    return Channels(
        torch.stack([values[..., rank] for rank in ranks], -1),
        given.moments.mean,
        given.moments.variance,
        output.amax([axis for axis in range(output.dim()) if axis != 1]),
        rows.unbiased_variance / rows.count if rows.count > 1 else None,
        running_mean,
        running_var,
        weight.detach().clone() if isinstance(weight, Tensor) else None,
    )


def is_fused(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether this call of `layer` has more in it than batch norm.

    >>> is_fused(nn.BatchNorm1d(2), (torch.ones(2, 2),), {})
    False
    """
    if not isinstance(layer, ActivatedBatchNorm):
        return False
    return layer.activation is not None or len(tensors_in((args, kwargs))) > 1


def running_statistics(layer: Any) -> Running | None:
    """Return the layer's running mean and variance, None where it has none yet or at all."""
    mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or is_lazy(mean):
        return None
    return mean, variance


def _means_of_rows(values: Tensor) -> Tensor:
    return values.flatten(2).mean(2, dtype=dtype_of_sums(values))


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


def _sorted(values: Tensor) -> Tensor:
    if values.is_cpu:  # numpy sorts with vector instructions, in a tenth of torch's time
        return torch.from_numpy(np.sort(values.contiguous().numpy()))
    return values.sort().values
