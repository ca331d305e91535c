"""From tensors to a job, and from a job to threads that do it."""

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from bnkit.kernels.cpu.compilation import kernel
from bnkit.kernels.cpu.cutting import cut
from bnkit.kernels.cpu.jobs import APPLY, COEFFICIENTS, FINISH, GATHER, job_of
from bnkit.kernels.cpu.layouts import Layout
from bnkit.kernels.cpu.pointwise import CODES
from bnkit.kernels.cpu.team import work


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic on `x`."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def execute(
    direction: str,
    layout: Layout,
    tensors: Mapping[str, Tensor | None],
    *,
    activation: str | None,
    eps: float,
    training: bool,
) -> None:
    """Run the kernel of a direction, "forward" or "backward", on tensors of one layout."""
    x = tensors["x"]
    assert x is not None
    if not x.numel():
        _finish_empty(x, tensors, needs_values=training and direction == "forward")
        return
    read_again = sum(tensors.get(name) is not None for name in ("x", "dy", "residual"))
    width, parts = cut(layout, read_again * x.element_size())
    blocks = -(-layout.channels // width)
    # One piece of memory for all that the threads share, in rows of 8 bytes for each channel.
    lengths = {"table": COEFFICIENTS, "scratch": 3 * parts, "partial": 3 * parts}
    shared = torch.empty(sum(lengths.values()) * layout.channels, dtype=torch.float64)
    fields = {name: t.data_ptr() for name, t in tensors.items() if t is not None}
    at = shared.data_ptr()
    for name, length in lengths.items():
        fields[name] = at
        at += 8 * length * layout.channels
    fields |= {
        "rows": layout.rows,
        "channels": layout.channels,
        "space": layout.space,
        "blocks": blocks,
        "parts": parts,
        "width": width,
        "activation": CODES[activation],
        "training": training,
    }
    address = kernel(layout.name, direction, x.dtype).address
    for phase in _phases(parts):
        fields["phase"] = phase
        job = job_of(fields, eps=eps)
        work(address, ctypes.addressof(job), blocks * parts)


def _phases(parts: int) -> tuple[int, ...]:
    return (GATHER | FINISH | APPLY,) if parts == 1 else (GATHER, FINISH, APPLY)


def _finish_empty(x: Tensor, tensors: Mapping[str, Tensor | None], *, needs_values: bool) -> None:
    if needs_values:
        raise ValueError(f"`x` of shape {tuple(x.shape)} is empty: it has no statistics")
    for name in ("dweight", "dbias"):
        if (gradient := tensors.get(name)) is not None:
            gradient.zero_()
