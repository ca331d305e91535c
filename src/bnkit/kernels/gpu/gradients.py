"""The sums over a channel that its gradients need: Σ ∂ℓ/∂z and Σ ∂ℓ/∂z · x̂.

As in `moments`, many programs share a channel and a second launch adds their sums in a fixed order.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN201, N803
# Triton's language has no types for mypy, and writes what is fixed at compilation in capitals.

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnkit.kernels.gpu.activations import gradient_through
from bnkit.kernels.gpu.tiles import (
    coefficients,
    columns,
    own_row,
    rows,
    sum_of_channels,
    tile,
    values,
)
from bnkit.kernels.gpu.tiling import merging, tiling_of_stream
from bnkit.kernels.gpu.views import Terms, View, new_pair


def sum_gradients(
    dy: Tensor,
    x: Tensor,
    terms: Terms,
    view: View,
    *,
    eps: float,
    activation: str | None,
    dz: Tensor | None = None,
    dx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return Σ ∂ℓ/∂z and Σ ∂ℓ/∂z · x̂ of each channel, (C,) in float32; write ∂ℓ/∂z to `dz`.

    With `dx`, ∂ℓ/∂x is written to it for statistics that are constants, as in inference: that
    needs no sums, so that one reading does.
    """
    tiling = tiling_of_stream(view, x)
    parts = tiling.partial_results(view)
    partial = x.new_empty(2, parts, view.channels, dtype=torch.float32)
    sums = new_pair(x, view)
    partial_gradients[tiling.grid_of_reduction(view)](
        dy, x, dz, dx, partial, *terms, eps, **view.arguments(), ACTIVATION=activation,
        **tiling.arguments(),
    )  # fmt: skip
    grid, blocks = merging(view.channels, parts)
    add_parts[grid](partial, *sums, parts, view.channels, **blocks)
    return sums


@triton.jit
def gradient_of_pre_activation(
    dy_ptr, x_hat, weight, bias, residual_ptr, offsets, mask, ACTIVATION: tl.constexpr
):
    """Return ∂ℓ/∂z of a tile, 0 beyond its edges; z is computed again and never kept."""
    z = x_hat * weight + bias
    if residual_ptr is not None:
        z += values(residual_ptr, offsets, mask)
    dz = gradient_through(values(dy_ptr, offsets, mask), z, ACTIVATION)
    return tl.where(mask, dz, 0.0)


@triton.jit
def partial_gradients(
    dy_ptr,
    x_ptr,
    dz_ptr,
    dx_ptr,
    partial_ptr,  # (2, parts, C)
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
    """Write both sums of this program's part of each of its channels; `dz` and `dx` where given."""
    channels, inner = channel_groups * CHANNEL_GROUP, inner_groups * INNER_GROUP
    c, s = columns(tl.program_id(0), inner, CHANNELS, INNER)
    mean, invstd, weight, bias = coefficients(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, eps
    )
    sum_dz = tl.zeros([OUTER, CHANNELS, INNER], tl.float32)
    sum_dz_x_hat = tl.zeros([OUTER, CHANNELS, INNER], tl.float32)
    for step in range(tl.program_id(1), tl.cdiv(outer, OUTER), tl.num_programs(1)):
        offsets, mask = tile(step, c, s, outer, channels, inner, OUTER)
        x_hat = (values(x_ptr, offsets, mask) - mean) * invstd
        dz = gradient_of_pre_activation(
            dy_ptr, x_hat, weight, bias, residual_ptr, offsets, mask, ACTIVATION
        )
        if dz_ptr is not None:
            tl.store(dz_ptr + offsets, dz, mask=mask)
        if dx_ptr is not None:
            tl.store(dx_ptr + offsets, dz * (invstd * weight), mask=mask)
        sum_dz += dz
        sum_dz_x_hat += tl.where(mask, dz * x_hat, 0.0)
    at, plane = own_row(c, channels, tl.cdiv(inner, INNER))
    tl.store(partial_ptr + at, sum_of_channels(sum_dz), mask=c < channels)
    tl.store(partial_ptr + plane + at, sum_of_channels(sum_dz_x_hat), mask=c < channels)


@triton.jit
def add_parts(
    partial_ptr,
    sum_dz_ptr,
    sum_dz_x_hat_ptr,
    parts,
    channels,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Add the rows of both planes of (2, parts, C)."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    second = partial_ptr + parts * channels
    sum_dz = tl.zeros([CHANNELS], tl.float32)
    sum_dz_x_hat = tl.zeros([CHANNELS], tl.float32)
    for first in range(0, parts, PARTS):
        offsets, mask = rows(first, c, parts, channels, PARTS)
        sum_dz += tl.sum(tl.load(partial_ptr + offsets, mask=mask, other=0.0), 0)
        sum_dz_x_hat += tl.sum(tl.load(second + offsets, mask=mask, other=0.0), 0)
    tl.store(sum_dz_ptr + c, sum_dz, mask=c < channels)
    tl.store(sum_dz_x_hat_ptr + c, sum_dz_x_hat, mask=c < channels)
