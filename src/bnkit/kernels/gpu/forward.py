"""Forward and inference on the GPU: the launchers, and the kernels that write y."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN201, N803
# Triton's language has no types for mypy, and writes what is fixed at compilation in capitals.

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnkit.kernels.activations import find_activation
from bnkit.kernels.gpu.activations import activate
from bnkit.kernels.gpu.moments import moments
from bnkit.kernels.gpu.tiles import (
    coefficients,
    columns,
    per_channel,
    pivots,
    sum_of_channels,
    tile,
    values,
)
from bnkit.kernels.gpu.tiling import tiling_of_stream, tiling_of_whole_channels
from bnkit.kernels.gpu.views import Terms, View, collapse, new_pair, terms


@torch.no_grad()
def batch_norm_forward(
    x: Tensor,
    *parameters: Tensor | None,  # weight and bias
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and the mean and biased variance of each channel by which x was normalised.

    As `kernels.reference.batch_norm_forward`, for float32, bfloat16 and float16. Channels whose
    values fit in registers are read once, others twice. Raises ValueError for an empty `x` and
    TypeError for another dtype.
    """
    find_activation(activation)
    if not x.numel():
        raise ValueError(f"`x` of shape {tuple(x.shape)} is empty: it has no moments")
    x, view = collapse(x)
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        whole = tiling_of_whole_channels(view, x.element_size())
        if whole is None:
            mean, variance = moments(x, view)
            given = terms(x, mean, variance, *parameters, residual)
            _normalise(x, y, given, view, eps=eps, activation=activation)
        else:
            mean, variance = new_pair(x, view)
            given = terms(x, mean, variance, *parameters, residual)
            normalise_whole_channels[whole.grid_of_reduction(view)](
                x, y, *given, eps, **view.arguments(), ACTIVATION=activation, **whole.arguments()
            )
    return y, mean, variance


@torch.no_grad()
def batch_norm_inference(
    x: Tensor,
    *channelwise: Tensor | None,  # mean, variance, weight and bias
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return y for a given mean and variance of each channel, in the shape and dtype of `x`.

    As `kernels.reference.batch_norm_inference`; `x` is read once. Raises TypeError for a dtype
    other than float32, bfloat16 and float16.
    """
    find_activation(activation)
    x, view = collapse(x)
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        given = terms(x, *channelwise, residual)
        _normalise(x, y, given, view, eps=eps, activation=activation)
    return y


def _normalise(
    x: Tensor, y: Tensor, given: Terms, view: View, *, eps: float, activation: str | None
) -> None:
    tiling = tiling_of_stream(view, x)
    normalise[tiling.grid_of_map(view)](
        x, y, *given, eps, **view.arguments(), ACTIVATION=activation, **tiling.arguments()
    )


@triton.jit
def normalise(
    x_ptr,
    y_ptr,
    mean_ptr,
    variance_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    eps,
    outer,
    channel_groups,
    inner_groups,
    CHANNEL_GROUP: tl.constexpr,
    INNER_GROUP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OUTER: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
):
    """Write y, last tile first: what the statistics read last may still be in cache."""
    channels, inner = channel_groups * CHANNEL_GROUP, inner_groups * INNER_GROUP
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    c, s = columns(block, inner, CHANNELS, INNER)
    mean, invstd, weight, bias = coefficients(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, eps
    )
    steps = tl.cdiv(outer, OUTER)
    for step in range(tl.program_id(1), steps, tl.num_programs(1)):
        offsets, mask = tile(steps - 1 - step, c, s, outer, channels, inner, OUTER)
        z = (values(x_ptr, offsets, mask) - mean) * invstd * weight + bias
        if residual_ptr is not None:
            z += values(residual_ptr, offsets, mask)
        tl.store(y_ptr + offsets, activate(z, ACTIVATION), mask=mask)


@triton.jit
def normalise_whole_channels(
    x_ptr,
    y_ptr,
    mean_ptr,
    variance_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    eps,
    outer,
    channel_groups,
    inner_groups,
    CHANNEL_GROUP: tl.constexpr,
    INNER_GROUP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OUTER: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
):
    """Write mean, variance and y of channels whose values all fit in one tile: one read of x."""
    channels, inner = channel_groups * CHANNEL_GROUP, inner_groups * INNER_GROUP
    c, s = columns(tl.program_id(0), inner, CHANNELS, INNER)
    offsets, mask = tile(0, c, s, outer, channels, inner, OUTER)
    x = values(x_ptr, offsets, mask)
    pivot = pivots(x_ptr, c, channels, inner)
    count = outer.to(tl.float32) * inner.to(tl.float32)
    shifted = x - pivot[None, :, None]
    gap = sum_of_channels(tl.where(mask, shifted, 0.0)) / count
    deviations = tl.where(mask, shifted - gap[None, :, None], 0.0)
    mean, variance = pivot + gap, sum_of_channels(deviations * deviations) / count
    tl.store(mean_ptr + c, mean, mask=c < channels)
    tl.store(variance_ptr + c, variance, mask=c < channels)
    invstd = (1.0 / tl.sqrt_rn(variance + eps))[None, :, None]
    weight = per_channel(weight_ptr, c, channels, 1.0)
    bias = per_channel(bias_ptr, c, channels, 0.0)
    z = (x - mean[None, :, None]) * invstd * weight + bias
    if residual_ptr is not None:
        z += values(residual_ptr, offsets, mask)
    tl.store(y_ptr + offsets, activate(z, ACTIVATION), mask=mask)
