"""Elementary functions of lanes: sigmoid, tanh, the normal distribution, to their last digits.

A call of the C library for each value would take longer than the memory does. NaN stays NaN, and
at infinity each function has its limit.
"""

import math
from typing import Any

from bnkit.kernels.cpu.compiling import inlined
from bnkit.kernels.cpu.lanes import polynomial, power_of_two, rounded_to_integer, where

_one, _two, _half, _three = (polynomial([value]) for value in (1.0, 2.0, 0.5, 3.0))
_zero, _largest = polynomial([0.0]), polynomial([120.0], [800.0])  # exp beyond is infinite
_binary_logarithm = polynomial([0.0, math.log2(math.e)])
# ln 2 in two parts, the first of few digits: its product with an integer is exact.
_coarse, _fine = 0.693359375, math.log(2) - 0.693359375
_minus_coarse, _minus_fine = polynomial([-_coarse]), polynomial([-_fine])
# (exp(r) − 1) / r for |r| ≤ ln 2 / 2: its series.
_exp_series = polynomial(*([1 / math.factorial(k + 1) for k in range(n)] for n in (8, 14)))
_minus_half_square = polynomial([0.0, 0.0, -0.5])
_minus, _slope = polynomial([0.0, -1.0]), polynomial([0.0, math.sqrt(0.5)])
_density_scale = polynomial([1 / math.sqrt(2 * math.pi)])
# (1 + 2x)·exp(x²)·erfc(x) in powers of t = (x − 3)/(x + 3), interpolated at Chebyshev's nodes;
# the form is that of Shepherd and Laframboise 1981. Relative errors 7e-9 and 1e-17.
_erfc_series = polynomial(
    [
        *(1.2530080563514496, -0.13562110005839803, -0.047562156146354076, 0.1296447209153884),
        *(-0.11927528136881009, 0.06831319671956372, -0.023763559702172088, 0.0025067786718598333),
        *(0.001875060245867973, -0.0007340820503933423, -9.25376912641456e-05),
        8.007454974776248e-05,
    ],
    [
        *(1.2530080582697296, -0.13562110612458117, -0.04756229435345087, 0.1296451587027606),
        *(-0.11927366341530699, 0.06830802734397848, -0.023770514918645888, 0.002529391816066239),
        *(0.0018886903591561553, -0.0007798322721083991, -0.00010515979981501177),
        *(0.00012509935235563107, 4.949484992570595e-06, -2.0100567931289227e-05),
        *(-7.315105164159059e-07, 3.4724146028756853e-06, 3.568383915399215e-07),
        *(-6.166496077604346e-07, -1.4160064940265918e-07, 1.0187000600072834e-07),
        *(4.1807846988455305e-08, -1.3326364813003607e-08, -8.500397929772389e-09),
        *(9.885798831138935e-10, 8.864219016426661e-10),
    ],
)


@inlined
def _within(v: Any, bound: Any) -> Any:
    v = where(v > bound, bound, v)
    return where(v < _minus(bound), _minus(bound), v)


@inlined
def _split(v: Any) -> Any:
    """Return n and exp(r) − 1, where v = n·ln 2 + r and n is an integer."""
    n = rounded_to_integer(_binary_logarithm(v))
    r = v + n * _minus_coarse(v) + n * _minus_fine(v)
    return n, r * _exp_series(r)


@inlined
def exp(v: Any) -> Any:
    """Return e to the power of v."""
    n, growth = _split(_within(v, _largest(v)))
    first = rounded_to_integer(n * _half(v))  # 2ⁿ in two factors, because n may leave the range
    return (_one(v) + growth) * power_of_two(first) * power_of_two(n - first)


@inlined
def sigmoid(v: Any) -> Any:
    """1 / (1 + exp(−v))."""
    return _one(v) / (_one(v) + exp(_minus(v)))


@inlined
def tanh(v: Any) -> Any:
    """(exp(2v) − 1) / (exp(2v) + 1), with exp(2v) − 1 computed as such."""
    n, growth = _split(_within(v + v, _forty(v)))
    scale = power_of_two(n)
    growth = scale * growth + (scale - _one(v))
    return growth / (growth + _two(v))


_forty = polynomial([40.0])  # where tanh(v / 2) is 1 in every dtype


@inlined
def normal_density(v: Any) -> Any:
    """exp(−v²/2) / √(2π)."""
    return exp(_minus_half_square(v)) * _density_scale(v)


@inlined
def normal_distribution(v: Any) -> Any:
    """½·erfc(−v/√2), of equal relative error in both tails."""
    x = _within(_slope(where(v < _zero(v), _minus(v), v)), _largest(v))
    series = _erfc_series((x - _three(v)) / (x + _three(v)))
    tail = _half(v) * series * exp(_minus_half_square(v)) / (_one(v) + x + x)
    return where(v < _zero(v), tail, _one(v) - tail)
