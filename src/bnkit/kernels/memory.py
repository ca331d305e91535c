"""Recycled memory for large CPU tensors: the pages of a fresh one cost more than its arithmetic.

The system hands out large blocks page by page, zeroed, at the first touch, and takes them back when
they are freed. Here a block is kept when the *storage* of its tensor dies, that is when no tensor,
view, graph or numpy array refers to it any more, and the next tensor of its size gets it. The block
is tied to an object that only the storage owns, so it does not matter which thread frees the last
reference, or when.

Such tensors are like any other but for one thing: `resize_` beyond their size raises RuntimeError,
because the memory is not torch's own.
"""

import itertools
import os
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGE = 2**22  # bytes; smaller blocks are kept by the C library itself
ALIGNMENT = 64  # bytes, as torch's own
_Block = NDArray[np.uint8]

# Only operations that are atomic in CPython and no locks: a block may come back in the middle of
# any of them, from another thread or from the garbage collector of this one.
_idle: dict[int, deque[_Block]] = {}  # by size
_last_use: dict[int, int] = {}
_uses = itertools.count()
_limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


class _Loan(np.ndarray[tuple[int], np.dtype[np.uint8]]):
    """A block as long as a storage owns it."""

    def __del__(self) -> None:
        if isinstance(self.base, np.ndarray):
            _keep(self.base)


def empty_like(x: Tensor) -> Tensor:
    """Return a tensor of the shape, strides and dtype of `x`, as torch.empty_like does.

    Large dense CPU tensors get recycled memory, all others that of torch.

    >>> empty_like(torch.zeros(1024, 1024)).shape
    torch.Size([1024, 1024])
    """
    size = x.numel() * x.element_size()
    if size < LARGE or x.device.type != "cpu" or not _is_dense(x):
        return torch.empty_like(x)
    storage = torch.from_numpy(_borrow(size)).untyped_storage()
    return torch.empty(0, dtype=x.dtype).set_(storage, 0, x.shape, x.stride())


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.dim() > 1 and x.movedim(1, -1).is_contiguous())


def idle_bytes() -> int:
    """Return how many bytes are kept for tensors to come."""
    return sum(size * len(blocks) for size, blocks in list(_idle.items()))


def idle_limit() -> int:
    """Return how many bytes are kept at most."""
    return _limit


def limit_idle_bytes(limit: int) -> None:
    """Keep at most `limit` bytes from now on; the default is a quarter of the machine's memory.

    What was unused for longest is freed first. 0 turns recycling off.

    Raises ValueError for a negative limit.
    """
    global _limit  # noqa: PLW0603  one limit per process, as there is one heap
    if limit < 0:
        raise ValueError(f"`limit` is {limit}: pass a number of bytes, 0 to keep none")
    _limit = limit
    _trim()


def release() -> None:
    """Free all memory that is kept for tensors to come.

    >>> release()
    >>> idle_bytes()
    0
    """
    for blocks in list(_idle.values()):
        blocks.clear()


def _borrow(size: int) -> _Loan:
    _last_use[size] = next(_uses)
    try:
        block = _idle[size].pop()
    except (KeyError, IndexError):
        # numpy asks the system for huge pages where it can.
        block = np.empty(size + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return _Loan((size,), np.uint8, block, start)


def _keep(block: _Block) -> None:
    size = len(block) - ALIGNMENT
    _idle.setdefault(size, deque()).append(block)
    _trim()


def _trim() -> None:
    while idle_bytes() > _limit:
        kept = [size for size, blocks in list(_idle.items()) if blocks]
        try:
            _idle[min(kept, key=_last_use.__getitem__)].popleft()
        except (ValueError, IndexError):
            return  # another thread was faster
