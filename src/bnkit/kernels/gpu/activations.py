"""The activations in Triton: values and gradients as in `kernels.activations`, at the kinks too."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN201, ANN202, N803, PLR0911, RET505
# Triton's language has no types for mypy, and writes what is fixed at compilation in capitals. It
# also compiles what comes after a `return`, so that `elif` is needed.

import math

import triton
import triton.language as tl

from bnkit.kernels.activations import LEAKY_SLOPE

_LEAKY_SLOPE = tl.constexpr(LEAKY_SLOPE)
_ROOT_OF_HALF = tl.constexpr(math.sqrt(0.5))
_NORMAL = tl.constexpr(1 / math.sqrt(2 * math.pi))


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """Return f(z), in float32."""
    if ACTIVATION == "relu":
        return tl.where(z <= 0, 0.0, z)  # NaN for NaN, as torch
    elif ACTIVATION == "leaky_relu":
        return tl.where(z > 0, z, z * _LEAKY_SLOPE)
    elif ACTIVATION == "relu6":
        return _between_0_and_6(z)
    elif ACTIVATION == "silu":
        return z * tl.sigmoid(z)
    elif ACTIVATION == "hardswish":
        return z * _between_0_and_6(z + 3) / 6
    elif ACTIVATION == "gelu":
        return z * _normal_distribution(z)
    elif ACTIVATION == "sigmoid":
        return tl.sigmoid(z)
    elif ACTIVATION == "tanh":
        return _tanh(z)
    else:
        tl.static_assert(ACTIVATION is None, "no Triton code for this activation")
        return z


@triton.jit
def gradient_through(dy, z, ACTIVATION: tl.constexpr):
    """Return dy · f′(z), in float32."""
    if ACTIVATION == "relu":
        return tl.where(z <= 0, 0.0, dy)
    elif ACTIVATION == "leaky_relu":
        return tl.where(z > 0, dy, dy * _LEAKY_SLOPE)
    elif ACTIVATION == "relu6":
        return tl.where((z <= 0) | (z >= 6), 0.0, dy)
    elif ACTIVATION == "silu":
        sigma = tl.sigmoid(z)
        return dy * (sigma * (1 + z * (1 - sigma)))
    elif ACTIVATION == "hardswish":
        return tl.where(z <= -3, 0.0, tl.where(z >= 3, dy, dy * (z / 3 + 0.5)))
    elif ACTIVATION == "gelu":
        return dy * (_normal_distribution(z) + z * _NORMAL * tl.exp(-0.5 * z * z))
    elif ACTIVATION == "sigmoid":
        y = tl.sigmoid(z)
        return dy * (1 - y) * y
    elif ACTIVATION == "tanh":
        y = _tanh(z)
        return dy * (1 - y * y)
    else:
        tl.static_assert(ACTIVATION is None, "no Triton code for this activation")
        return dy


@triton.jit
def _between_0_and_6(z):
    return tl.where(z <= 0, 0.0, tl.where(z >= 6, 6.0, z))


@triton.jit
def _normal_distribution(z):
    return 0.5 * (1 + tl.erf(z * _ROOT_OF_HALF))


@triton.jit
def _tanh(z):
    # Near 0 the Padé approximant [5/4] of tanh (its error is below 6e-8 of the value up to 1): the
    # other formula would cancel there.
    square = z * z
    near = z * (945 + square * (105 + square)) / (945 + square * (420 + square * 15))
    far = 1 - 2 / (tl.exp(2 * tl.abs(z)) + 1)
    return tl.where(tl.abs(z) < 1, near, tl.where(z < 0, -far, far))
