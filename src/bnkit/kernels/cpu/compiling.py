"""Numba's decorators as the kernels use them.

A division by zero gives infinity or NaN, as in torch, where Python would raise.
"""

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.extending import intrinsic

compiled: Callable[[Callable[..., Any]], Any] = njit(error_model="numpy")
inlined: Callable[[Callable[..., Any]], Any] = njit(error_model="numpy", forceinline=True)
instruction: Callable[[Callable[..., Any]], Any] = intrinsic
