"""`mask`: which values are real, for every masked layer that runs inside a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_current: ContextVar[Tensor] = ContextVar("bnkit.mask")
# One entry for each block in force, in whatever thread or task: torch.compile cannot look into a
# ContextVar, but it can guard the length of a list, so that models without a mask stay one graph.
# Threads share it: only its length counts, and append and pop are atomic.
_blocks: list[None] = []


@contextmanager
def mask(real: Tensor) -> Iterator[None]:
    """Give `real` to every masked layer (`MaskedBatchNorm1d` and so on) that runs in the block.

    The models inside need not know of it. `real` is a bool tensor (N, L), (N, H, W) or (N, D, H,
    W) in which True marks a real value and False padding: the opposite of torch's
    `key_padding_mask`. `fit` says how it is fitted to layers of other lengths. Blocks nest, the
    inner one holds; each thread and each asyncio task has its own, and a thread started in a block
    begins without one.

    A mask that a layer is given as an argument goes before that of the block. Raises TypeError for
    another dtype, and ValueError for a tensor without axes.

    >>> from bnkit.layers.masked import MaskedBatchNorm1d
    >>> model = torch.nn.Sequential(torch.nn.Identity(), MaskedBatchNorm1d(1))
    >>> padded = torch.tensor([[[1.0, 3.0, 0.0]]])
    >>> with mask(torch.tensor([[True, True, False]])):
    ...     model(padded)
    tensor([[[-1.0000,  1.0000,  0.0000]]], grad_fn=<CopySlices>)
    """
    check_mask(real)
    token = _current.set(real)
    _blocks.append(None)
    try:
        yield
    finally:
        _blocks.pop()
        _current.reset(token)


def current_mask() -> Tensor | None:
    """Return the mask of the innermost block in force here, or None.

    >>> with mask(torch.tensor([True, False])):
    ...     current_mask()
    tensor([ True, False])
    """
    return _current.get(None) if _blocks else None


def check_mask(real: Tensor) -> None:
    """Raise TypeError unless `real` is a bool tensor, and ValueError if it has no axes."""
    if not isinstance(real, Tensor) or real.dtype is not torch.bool:
        given = real.dtype if isinstance(real, Tensor) else type(real).__name__
        raise TypeError(
            f"`mask` is {given}: pass a torch.bool tensor in which True marks a real value, as in "
            f"mask.bool(), or ~padding where True marks padding"
        )
    if not real.dim():
        raise ValueError(
            "`mask` has no axes: pass one value for each position, (N, L) or (N, H, W)"
        )


def fit(real: Tensor, positions: torch.Size) -> Tensor | None:
    """Return `real` for a layer whose input has these `positions`, (N, ...), or None if none fits.

    In this order: as it is; on the same number of axes resized to other lengths by nearest
    neighbour, new index i taking old index floor(i · old / new), which keeps the first position of
    sequences that are padded at their end; flattened, for a layer that sees a sequence's positions
    as rows (N·L,) or an image's as a sequence (N, H·W), in the mask's order; for one row a sample
    (N,), where positions were pooled away, True for each sample with a real value.

    >>> real = torch.tensor([[True, True, True, False]])
    >>> fit(real, torch.Size([1, 2])), fit(real, torch.Size([4])), fit(real, torch.Size([1]))
    (tensor([[True, True]]), tensor([ True,  True,  True, False]), tensor([True]))
    """
    if real.shape == positions:
        return real
    samples = real.flatten(1) if real.dim() > 1 else real[:, None]
    if len(positions) == 1 and positions.numel() == real.numel():
        return real.flatten()
    if real.shape[0] != positions[0]:
        return None
    if len(positions) == 1:
        return samples.any(1)
    if real.dim() == len(positions):
        return _resize(real, positions)
    return samples if samples.shape == positions else None


def _resize(real: Tensor, positions: torch.Size) -> Tensor:
    # In whole numbers, and not by interpolate, which multiplies by old / new in float32.
    for axis, new in enumerate(positions):
        old = real.shape[axis]
        if new != old:
            real = real.index_select(axis, torch.arange(new, device=real.device) * old // new)
    return real
