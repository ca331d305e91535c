"""What happens to each value by itself: the activations and their gradients, on lanes.

As in `bnkit.kernels.activations`, kinks and values that are not finite follow torch: a comparison
with NaN is false, so each `where` says what NaN becomes.
"""

from typing import Any

from bnkit.kernels.activations import ACTIVATIONS, LEAKY_SLOPE
from bnkit.kernels.cpu.compiling import compiled, inlined
from bnkit.kernels.cpu.elementary import normal_density, normal_distribution, sigmoid, tanh
from bnkit.kernels.cpu.lanes import polynomial, where

CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
_RELU, _LEAKY_RELU, _RELU6 = CODES["relu"], CODES["leaky_relu"], CODES["relu6"]
_SILU, _HARDSWISH, _GELU = CODES["silu"], CODES["hardswish"], CODES["gelu"]
_SIGMOID = CODES["sigmoid"]
_zero, _one, _three, _six = (polynomial([value]) for value in (0.0, 1.0, 3.0, 6.0))
_minus_three = polynomial([-3.0])
_leak = polynomial([0.0, LEAKY_SLOPE])
_ramp = polynomial([0.5, 1 / 6])  # of hardswish, between its kinks
_slope_of_ramp = polynomial([0.5, 1 / 3])


@inlined
def activate(z: Any, activation: Any) -> Any:
    """Return f(z) for the activation of code `activation`."""
    if activation == 0:
        return z
    if activation == _RELU:
        return where(z <= _zero(z), _zero(z), z)
    return _activate(z, activation)


@compiled
def _activate(z: Any, activation: Any) -> Any:  # noqa: PLR0911  one for each activation
    zero = _zero(z)
    if activation == _LEAKY_RELU:
        return where(z > zero, z, _leak(z))
    if activation == _RELU6:
        return where(z <= zero, zero, where(z >= _six(z), _six(z), z))
    if activation == _SILU:
        return z * sigmoid(z)
    if activation == _HARDSWISH:
        return z * where(z <= _minus_three(z), zero, where(z >= _three(z), _one(z), _ramp(z)))
    if activation == _GELU:
        return z * normal_distribution(z)
    if activation == _SIGMOID:
        return sigmoid(z)
    return tanh(z)


@inlined
def gradient(dy: Any, z: Any, activation: Any) -> Any:
    """Return dy · f′(z) for the activation of code `activation`."""
    if activation == 0:
        return dy
    if activation == _RELU:
        return where(z <= _zero(z), _zero(z), dy)
    return _gradient(dy, z, activation)


@compiled
def _gradient(dy: Any, z: Any, activation: Any) -> Any:  # noqa: PLR0911  as above
    zero = _zero(z)
    if activation == _LEAKY_RELU:
        return where(z > zero, dy, _leak(dy))
    if activation == _RELU6:
        return where(z <= zero, zero, where(z >= _six(z), zero, dy))
    if activation == _SILU:
        y = sigmoid(z)
        return dy * (y * (_one(z) + z * (_one(z) - y)))
    if activation == _HARDSWISH:
        slope = dy * _slope_of_ramp(z)
        return where(z <= _minus_three(z), zero, where(z >= _three(z), dy, slope))
    if activation == _GELU:
        return dy * (normal_distribution(z) + z * normal_density(z))
    if activation == _SIGMOID:
        y = sigmoid(z)
        return dy * (_one(z) - y) * y
    y = tanh(z)
    return dy * (_one(z) - y * y)
