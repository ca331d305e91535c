"""Batch norm on GPUs, in Triton: fused with activation and residual, for both memory formats.

Importing this package imports triton, so it is imported only when it is chosen. Every tensor is
seen as (outer, channels, inner), see `tiling`; the kernels know no other layout.
"""

from bnkit.kernels.gpu.backward import batch_norm_backward
from bnkit.kernels.gpu.forward import batch_norm_forward, batch_norm_inference

__all__ = ["batch_norm_backward", "batch_norm_forward", "batch_norm_inference"]
