"""What all kernels share: where a tile lies, the parameters of its channels, sums of it."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN201, N803
# Triton's language has no types for mypy, and writes what is fixed at compilation in capitals.

import triton
import triton.language as tl


@triton.jit
def columns(block, inner, CHANNELS: tl.constexpr, INNER: tl.constexpr):
    """Return the channels (CHANNELS,) and inner positions (INNER,) of a block."""
    tiles = tl.cdiv(inner, INNER)
    c = (block // tiles) * CHANNELS + tl.arange(0, CHANNELS)
    s = (block % tiles) * INNER + tl.arange(0, INNER)
    return c, s


@triton.jit
def tile(step, c, s, outer, channels, inner, OUTER: tl.constexpr):
    """Return offsets and mask (OUTER, CHANNELS, INNER) of the tile at a step of the outer axis."""
    n = step * OUTER + tl.arange(0, OUTER)
    rows = n.to(tl.int64)[:, None, None] * channels + c[None, :, None]  # tensors may exceed 2³¹
    offsets = rows * inner + s[None, None, :]
    mask = (n < outer)[:, None, None] & (c < channels)[None, :, None] & (s < inner)[None, None, :]
    return offsets, mask


@triton.jit
def values(pointer, offsets, mask):
    """Return a tile of a tensor in float32, 0 beyond its edges."""
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def per_channel(pointer, c, channels, DEFAULT: tl.constexpr):
    """Return the values of a (C,) tensor beside a tile, (1, CHANNELS, 1); DEFAULT without one."""
    if pointer is None:
        return tl.full([1, c.shape[0], 1], DEFAULT, tl.float32)
    return tl.load(pointer + c, mask=c < channels, other=0.0).to(tl.float32)[None, :, None]


@triton.jit
def coefficients(mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, eps):
    """Return μ, 1/√(σ² + ε), γ and β beside a tile, each (1, CHANNELS, 1)."""
    mean = per_channel(mean_ptr, c, channels, 0.0)
    # Once per channel: correctly rounded, where rsqrt is approximate.
    invstd = 1.0 / tl.sqrt_rn(per_channel(variance_ptr, c, channels, 0.0) + eps)
    weight = per_channel(weight_ptr, c, channels, 1.0)
    bias = per_channel(bias_ptr, c, channels, 0.0)
    return mean, invstd, weight, bias


@triton.jit
def pivots(x_ptr, c, channels, inner):
    """Return the first value of each channel, 0 where that is not finite; (CHANNELS,).

    Deviations from a value of the channel itself keep their digits where |mean| ≫ std; with any
    other value the formulas are still right.
    """
    first = tl.load(x_ptr + c.to(tl.int64) * inner, mask=c < channels, other=0.0).to(tl.float32)
    return tl.where(tl.abs(first) < float("inf"), first, 0.0)


@triton.jit
def sum_of_channels(x):
    """(OUTER, CHANNELS, INNER) → (CHANNELS,), in a fixed order."""
    return tl.sum(tl.sum(x, 2), 0)


@triton.jit
def own_row(c, channels, inner_tiles):
    """Return where this program's row of partial results begins, and the size of a plane.

    Partial results are planes of (parts, C), one plane for each quantity.
    """
    row = tl.program_id(1) * inner_tiles + tl.program_id(0) % inner_tiles
    return row * channels + c, tl.num_programs(1) * inner_tiles * channels


@triton.jit
def rows(first, c, parts, channels, PARTS: tl.constexpr):
    """Return offsets and mask (PARTS, CHANNELS) of rows of partial results."""
    part = first + tl.arange(0, PARTS)
    return part[:, None] * channels + c[None, :], (part < parts)[:, None] & (c < channels)[None, :]
