"""Kernels for the CPU: the arithmetic of `reference`, compiled by Numba, at the speed of memory."""

from bnkit.kernels.cpu.functions import (
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_inference_backward,
)

__all__ = [
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_inference",
    "batch_norm_inference_backward",
]
