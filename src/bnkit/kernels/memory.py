"""Recycled memory for large CPU tensors: the pages of a fresh one cost more than its arithmetic.

The system hands out large blocks page by page, zeroed, at the first touch, and takes them back when
they are freed. The core keeps a block instead when the *storage* of its tensor dies, that is when
no tensor, view, graph or numpy array refers to it any more, and the next tensor of its size gets
it. Each step costs the same however many sizes there were, and blocks that stay unused are dropped.
Without the core nothing is kept.
"""

import torch
from torch import Tensor

from bnkit.kernels.choice import missing_core
from bnkit.platforms import memory_share

_limit: int | None = None


def empty_like(x: Tensor) -> Tensor:
    """Return a tensor of the shape, strides and dtype of `x`, as torch.empty_like does.

    Dense CPU tensors of 4 MiB and more get recycled memory, all others that of torch.

    >>> empty_like(torch.zeros(1024, 1024)).shape
    torch.Size([1024, 1024])
    """
    if missing_core():
        return torch.empty_like(x)
    y: Tensor = torch.ops.bnkit.recycled_like(x)
    return y


def idle_bytes() -> int:
    """Return how many bytes are kept for tensors to come."""
    return 0 if missing_core() else int(torch.ops.bnkit.idle_bytes())


def idle_limit() -> int:
    """Return how many bytes are kept at most.

    By default a quarter of what `bnkit.platforms.memory_share` says that this process may count on.
    """
    return memory_share() // 4 if _limit is None else _limit


def limit_idle_bytes(limit: int) -> None:
    """Keep at most `limit` bytes from now on.

    What was unused for longest is freed first. 0 turns recycling off.

    Raises ValueError for a negative limit.
    """
    global _limit  # noqa: PLW0603  one limit per process, as there is one heap
    if limit < 0:
        raise ValueError(f"`limit` is {limit}: pass a number of bytes, 0 to keep none")
    _limit = limit
    if not missing_core():
        torch.ops.bnkit.limit_idle_bytes(limit)


def release() -> None:
    """Free all memory that is kept for tensors to come.

    >>> release()
    >>> idle_bytes()
    0
    """
    if not missing_core():
        torch.ops.bnkit.release_idle_bytes()
