"""Mean and biased variance of each channel: partial moments by many programs, merged by few.

64 channels are too few to fill a GPU with one program each, so many programs share a channel.
Each finds count, mean and squared deviations of its part; a second launch merges these in a fixed
order, so that the result is the same from run to run.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN201, N803
# Triton's language has no types for mypy, and writes what is fixed at compilation in capitals.

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnkit.kernels.gpu.tiles import columns, own_row, pivots, rows, sum_of_channels, tile, values
from bnkit.kernels.gpu.tiling import merging, tiling_of_stream
from bnkit.kernels.gpu.views import View, new_pair


def moments(x: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel, (C,) in float32, of `x` seen as `view`."""
    tiling = tiling_of_stream(view, x)
    parts = tiling.partial_results(view)
    partial = x.new_empty(3, parts, view.channels, dtype=torch.float32)
    mean, variance = new_pair(x, view)
    partial_moments[tiling.grid_of_reduction(view)](
        x, partial, **view.arguments(), **tiling.arguments()
    )
    grid, blocks = merging(view.channels, parts)
    merge_moments[grid](partial, x, mean, variance, parts, view.channels, view.inner, **blocks)
    return mean, variance


@triton.jit
def partial_moments(
    x_ptr,
    partial_ptr,  # (3, parts, C): counts, means less the pivot, sums of squared deviations
    outer,
    channel_groups,
    inner_groups,
    CHANNEL_GROUP: tl.constexpr,
    INNER_GROUP: tl.constexpr,
    OUTER: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
):
    """Write the moments of this program's part of each of its channels.

    Each place of the tile keeps the moments of the values that pass through it (Welford 1962);
    they have seen equally many, so that a step needs one division in all.
    """
    channels, inner = channel_groups * CHANNEL_GROUP, inner_groups * INNER_GROUP
    c, s = columns(tl.program_id(0), inner, CHANNELS, INNER)
    pivot = pivots(x_ptr, c, channels, inner)[None, :, None]
    mean = tl.zeros([OUTER, CHANNELS, INNER], tl.float32)
    squares = tl.zeros([OUTER, CHANNELS, INNER], tl.float32)
    seen = 0.0
    for step in range(tl.program_id(1), tl.cdiv(outer, OUTER), tl.num_programs(1)):
        offsets, mask = tile(step, c, s, outer, channels, inner, OUTER)
        x = values(x_ptr, offsets, mask) - pivot
        seen += 1
        gap = tl.where(mask, x - mean, 0.0)
        mean += gap * (1 / seen)
        squares += gap * (x - mean)
    # A place beyond the edge of the outer axis is so at the last step only: nothing comes after.
    first = tl.program_id(1) * OUTER + tl.arange(0, OUTER)
    steps = tl.maximum(tl.cdiv(outer - first, tl.num_programs(1) * OUTER), 0)
    inside = (c < channels)[None, :, None] & (s < inner)[None, None, :]
    count = tl.where(inside, steps.to(tl.float32)[:, None, None], 0.0)
    total = sum_of_channels(count)
    merged = sum_of_channels(count * mean) / tl.maximum(total, 1.0)
    gap = mean - merged[None, :, None]
    squares = sum_of_channels(squares + count * gap * gap)
    at, plane = own_row(c, channels, tl.cdiv(inner, INNER))
    tl.store(partial_ptr + at, total, mask=c < channels)
    tl.store(partial_ptr + plane + at, merged, mask=c < channels)
    tl.store(partial_ptr + 2 * plane + at, squares, mask=c < channels)


@triton.jit
def merge_moments(
    partial_ptr,
    x_ptr,
    mean_ptr,
    variance_ptr,
    parts,
    channels,
    inner,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Merge partial moments: the formula of Chan, Golub and LeVeque (1983) for many parts.

    mean = Σ nᵢ·meanᵢ / n and M₂ = Σ M₂ᵢ + Σ nᵢ·(meanᵢ − mean)²: no difference of large squares.
    """
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    plane = parts * channels
    count = tl.zeros([CHANNELS], tl.float32)
    weighted = tl.zeros([CHANNELS], tl.float32)
    for first in range(0, parts, PARTS):
        offsets, mask = rows(first, c, parts, channels, PARTS)
        n = tl.load(partial_ptr + offsets, mask=mask, other=0.0)
        means = tl.load(partial_ptr + plane + offsets, mask=mask, other=0.0)
        count += tl.sum(n, 0)
        weighted += tl.sum(n * means, 0)
    mean = weighted / count
    squares = tl.zeros([CHANNELS], tl.float32)
    for first in range(0, parts, PARTS):
        offsets, mask = rows(first, c, parts, channels, PARTS)
        n = tl.load(partial_ptr + offsets, mask=mask, other=0.0)
        gap = tl.load(partial_ptr + plane + offsets, mask=mask, other=0.0) - mean[None, :]
        within = tl.load(partial_ptr + 2 * plane + offsets, mask=mask, other=0.0)
        squares += tl.sum(within + tl.where(mask, n * gap * gap, 0.0), 0)
    tl.store(mean_ptr + c, pivots(x_ptr, c, channels, inner) + mean, mask=c < channels)
    tl.store(variance_ptr + c, squares / count, mask=c < channels)
