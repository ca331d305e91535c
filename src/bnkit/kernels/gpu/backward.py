"""The gradients on the GPU: the launchers, and the kernels that write ∂ℓ/∂x in training."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN201, N803
# Triton's language has no types for mypy, and writes what is fixed at compilation in capitals.

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnkit.kernels.activations import find_activation
from bnkit.kernels.gpu.gradients import gradient_of_pre_activation, sum_gradients
from bnkit.kernels.gpu.tiles import (
    coefficients,
    columns,
    per_channel,
    sum_of_channels,
    tile,
    values,
)
from bnkit.kernels.gpu.tiling import tiling_of_stream, tiling_of_whole_channels
from bnkit.kernels.gpu.views import arranged, collapse, new_pair, terms
from bnkit.kernels.reference import Gradients


@torch.no_grad()
def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    *channelwise: Tensor | None,  # mean, variance, weight and bias
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    training: bool = True,
) -> Gradients:
    """Return dx, dweight, dbias and dresidual, given dy and what `batch_norm_forward` returned.

    As `kernels.reference.batch_norm_backward`. Channels whose values fit in registers are read
    once, others twice, and all once without `training`. With a residual, the second reading takes
    ∂ℓ/∂z from dresidual: it is then rounded to the dtype of `x` before it is used, as between
    torch's separate operations.
    """
    find_activation(activation)
    x, view = collapse(x)
    dy, given = arranged(dy, x), terms(x, *channelwise, residual)
    dx, dz = torch.empty_like(x), None if residual is None else torch.empty_like(x)
    with torch.cuda.device_of(x):
        whole = tiling_of_whole_channels(view, x.element_size())
        if not training:
            sums = sum_gradients(dy, x, given, view, eps=eps, activation=activation, dz=dz, dx=dx)
        elif whole is None:
            sums = sum_gradients(dy, x, given, view, eps=eps, activation=activation, dz=dz)
            source, remaining = (dy, activation) if dz is None else (dz, None)
            tiling = tiling_of_stream(view, x)
            input_gradient[tiling.grid_of_map(view)](
                source, x, dx, *sums, *given[:4], eps, **view.arguments(), ACTIVATION=remaining,
                **tiling.arguments(),
            )  # fmt: skip
        else:
            sums = new_pair(x, view)
            gradients_of_whole_channels[whole.grid_of_reduction(view)](
                dy, x, dz, dx, *sums, *given, eps, **view.arguments(), ACTIVATION=activation,
                **whole.arguments(),
            )  # fmt: skip
    weight, bias = channelwise[2:]
    return (
        dx,
        None if weight is None else sums[1].to(weight.dtype),
        None if bias is None else sums[0].to(bias.dtype),
        None if dz is None or residual is None else dz.to(residual.dtype),
    )


@triton.jit
def input_gradient(
    dy_ptr,
    x_ptr,
    dx_ptr,
    sum_dz_ptr,
    sum_dz_x_hat_ptr,
    mean_ptr,
    variance_ptr,
    weight_ptr,
    bias_ptr,
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
    """Write ∂ℓ/∂x, last tile first: what the sums read last may still be in cache."""
    channels, inner = channel_groups * CHANNEL_GROUP, inner_groups * INNER_GROUP
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    c, s = columns(block, inner, CHANNELS, INNER)
    mean, invstd, weight, bias = coefficients(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, eps
    )
    count = outer.to(tl.float32) * inner.to(tl.float32)
    mean_dz = per_channel(sum_dz_ptr, c, channels, 0.0) / count
    mean_dz_x_hat = per_channel(sum_dz_x_hat_ptr, c, channels, 0.0) / count
    steps = tl.cdiv(outer, OUTER)
    for step in range(tl.program_id(1), steps, tl.num_programs(1)):
        offsets, mask = tile(steps - 1 - step, c, s, outer, channels, inner, OUTER)
        x_hat = (values(x_ptr, offsets, mask) - mean) * invstd
        dz = gradient_of_pre_activation(
            dy_ptr, x_hat, weight, bias, None, offsets, mask, ACTIVATION
        )
        dx = (dz - mean_dz - x_hat * mean_dz_x_hat) * (invstd * weight)
        tl.store(dx_ptr + offsets, dx, mask=mask)


@triton.jit
def gradients_of_whole_channels(
    dy_ptr,
    x_ptr,
    dz_ptr,
    dx_ptr,
    sum_dz_ptr,
    sum_dz_x_hat_ptr,
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
    """Write all gradients of channels whose values fit in one tile: one reading of `x` and `dy`."""
    channels, inner = channel_groups * CHANNEL_GROUP, inner_groups * INNER_GROUP
    c, s = columns(tl.program_id(0), inner, CHANNELS, INNER)
    offsets, mask = tile(0, c, s, outer, channels, inner, OUTER)
    mean, invstd, weight, bias = coefficients(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, eps
    )
    x_hat = (values(x_ptr, offsets, mask) - mean) * invstd
    dz = gradient_of_pre_activation(
        dy_ptr, x_hat, weight, bias, residual_ptr, offsets, mask, ACTIVATION
    )
    if dz_ptr is not None:
        tl.store(dz_ptr + offsets, dz, mask=mask)
    sum_dz = sum_of_channels(dz)
    sum_dz_x_hat = sum_of_channels(tl.where(mask, dz * x_hat, 0.0))
    tl.store(sum_dz_ptr + c, sum_dz, mask=c < channels)
    tl.store(sum_dz_x_hat_ptr + c, sum_dz_x_hat, mask=c < channels)
    count = outer.to(tl.float32) * inner.to(tl.float32)
    mean_dz = (sum_dz / count)[None, :, None]
    mean_dz_x_hat = (sum_dz_x_hat / count)[None, :, None]
    dx = (dz - mean_dz - x_hat * mean_dz_x_hat) * (invstd * weight)
    tl.store(dx_ptr + offsets, dx, mask=mask)
