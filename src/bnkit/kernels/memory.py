"""Recycled memory for large CPU tensors: the pages of a fresh one cost more than its arithmetic.

The system hands out large blocks page by page, zeroed, at the first touch, and takes them back when
they are freed. Here a block is kept when the *storage* of its tensor dies, that is when no tensor,
view, graph or numpy array refers to it any more, and the next tensor of its size gets it. The block
is tied to an object that only the storage owns, so it does not matter which thread frees the last
reference, or when. Each step costs the same however many sizes there were, and sizes that stay
unused are dropped.

Such tensors are like any other but for one thing: `resize_` beyond their size raises RuntimeError,
because the memory is not torch's own.
"""

import threading
from collections import OrderedDict, deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnkit.kernels.choice import is_dense
from bnkit.platforms import after_fork, memory_share

LARGE = 2**22  # bytes; smaller blocks are kept by the C library itself
ALIGNMENT = 64  # bytes, as torch's own
PATIENCE = 2_000  # tensors: how many may come before a size that none of them has is dropped
_Block = NDArray[np.uint8]


class _Idle:
    """Blocks that wait for a tensor of their size. Only one thread at a time may use it."""

    def __init__(self) -> None:
        self.bytes = 0
        self._tensors = 0  # that were asked for
        # By size, with how many tensors there were when it was last used; the oldest use first.
        # A size without blocks has no entry, so there are never more entries than blocks.
        self._sizes: OrderedDict[int, tuple[int, list[_Block]]] = OrderedDict()

    def take(self, size: int) -> _Block | None:
        self._tensors += 1
        _, blocks = self._sizes.pop(size, (0, None))
        if blocks is None:
            return None
        block = blocks.pop()
        self.bytes -= size
        if blocks:
            self._sizes[size] = self._tensors, blocks  # at the end of the order
        return block

    def put(self, block: _Block) -> None:
        size = len(block) - ALIGNMENT
        _, blocks = self._sizes.pop(size, (0, []))
        blocks.append(block)
        self.bytes += size
        self._sizes[size] = self._tensors, blocks

    def trim(self, limit: int) -> None:
        """Free blocks of the size that was unused for longest, while they are too many or old."""
        while self._sizes:
            size, (last_use, blocks) = next(iter(self._sizes.items()))
            if self.bytes <= limit and self._tensors - last_use <= PATIENCE:
                return
            blocks.pop()
            self.bytes -= size
            if not blocks:
                del self._sizes[size]


# A block may come back in the middle of anything here, from another thread or from the garbage
# collector of this one. So it only joins a queue, which is atomic in CPython, and the lock is never
# waited for where that may happen: who has it empties the queue before long.
_returned: deque[_Block] = deque()
_lock = threading.Lock()
_idle = _Idle()
_limit: int | None = None


class _Loan(np.ndarray[tuple[int], np.dtype[np.uint8]]):
    """A block as long as a storage owns it."""

    def __del__(self) -> None:
        if isinstance(self.base, np.ndarray):
            _returned.append(self.base)
            _settle()


def empty_like(x: Tensor) -> Tensor:
    """Return a tensor of the shape, strides and dtype of `x`, as torch.empty_like does.

    Large dense CPU tensors get recycled memory, all others that of torch.

    >>> empty_like(torch.zeros(1024, 1024)).shape
    torch.Size([1024, 1024])
    """
    size = x.numel() * x.element_size()
    if size < LARGE or x.device.type != "cpu" or not is_dense(x):
        return torch.empty_like(x)
    storage = torch.from_numpy(_borrow(size)).untyped_storage()
    return torch.empty(0, dtype=x.dtype).set_(storage, 0, x.shape, x.stride())


def idle_bytes() -> int:
    """Return how many bytes are kept for tensors to come."""
    _settle()
    return _idle.bytes


def idle_limit() -> int:
    """Return how many bytes are kept at most.

    By default a quarter of what `bnkit.platforms.memory_share` says that this process may count on.
    """
    global _limit  # noqa: PLW0603  one limit per process, as there is one heap
    if _limit is None:
        _limit = memory_share() // 4
    return _limit


def limit_idle_bytes(limit: int) -> None:
    """Keep at most `limit` bytes from now on.

    What was unused for longest is freed first. 0 turns recycling off.

    Raises ValueError for a negative limit.
    """
    global _limit  # noqa: PLW0603  one limit per process, as there is one heap
    if limit < 0:
        raise ValueError(f"`limit` is {limit}: pass a number of bytes, 0 to keep none")
    _limit = limit
    with _lock:
        _idle.trim(limit)


def release() -> None:
    """Free all memory that is kept for tensors to come.

    >>> release()
    >>> idle_bytes()
    0
    """
    global _idle  # noqa: PLW0603  one per process, as there is one heap
    with _lock:
        _returned.clear()
        _idle = _Idle()


def _borrow(size: int) -> _Loan:
    block = None
    if _lock.acquire(blocking=False):  # another thread has it for a moment: take fresh memory
        try:
            block = _idle.take(size)
        finally:
            _lock.release()
    _settle()
    if block is None:
        block = _allocated(size + ALIGNMENT)
    start = -block.ctypes.data % ALIGNMENT
    return _Loan((size,), np.uint8, block, start)


def _allocated(size: int) -> _Block:
    try:
        # numpy asks the system for huge pages where it can.
        return np.empty(size, np.uint8)
    except MemoryError:
        release()
        return np.empty(size, np.uint8)


def _settle() -> None:
    """Put what came back among the idle blocks, unless another thread is at it."""
    while _returned and _lock.acquire(blocking=False):
        try:
            while _returned:
                _idle.put(_returned.popleft())
            _idle.trim(idle_limit())
        finally:
            _lock.release()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603  another thread of the parent may have had it
    _lock = threading.Lock()


after_fork(_after_fork)
