"""Kernels as machine code: compiled for a dtype when first needed, then kept on disk by Numba.

Numba looks for a folder to keep them in that it may write to: NUMBA_CACHE_DIR, the package's own,
the user's cache. Where there is none they are compiled once per process.
"""

import functools
from typing import Any

import torch
from numba import cfunc, types

from bnkit.kernels.cpu.jobs import job_type
from bnkit.kernels.cpu.planes import planes_backward, planes_forward
from bnkit.kernels.cpu.rows import rows_backward, rows_forward

KERNELS = {
    ("planes", "forward"): planes_forward,
    ("planes", "backward"): planes_backward,
    ("rows", "forward"): rows_forward,
    ("rows", "backward"): rows_backward,
}


@functools.cache  # which also keeps the code alive
def kernel(layout: str, direction: str, dtype: torch.dtype) -> Any:
    """Return a C function void(Job *), compiled or loaded from disk; `address` is where it is."""
    function, signature = KERNELS[layout, direction], types.void(job_type(dtype))
    try:
        return cfunc(signature, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to write to
        return cfunc(signature, error_model="numpy")(function)
