"""`GhostBatchNorm1d/2d/3d`: in training each virtual batch is normalised by its own statistics."""

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from bnkit.functional import check_residual, is_recomputing
from bnkit.layers.batch_norm import (
    BatchNormOptions,
    GuardedBatchNorm,
    refuse_empty,
    showing_options,
)
from bnkit.moments import dtype_of_sums

_Group = tuple[int, int]  # virtual batches of equal size: their number, and the rows of each
_Statistics = tuple[Tensor, Tensor] | tuple[None, None]


class GhostBatchNorm(GuardedBatchNorm):
    """What the ghost batch norms of all ranks share (Hoffer, Hubara and Soudry, NeurIPS 2017).

    In training the mini-batch is cut into virtual batches of `virtual_batch_size` consecutive rows
    (algorithm 1), all normalised at once. The rows left over are a smaller virtual batch of their
    own; where that would have one value per channel, they join the last full one. A mini-batch of
    at most `virtual_batch_size` rows is normalised as by torch's layer.

    The running statistics move once for each mini-batch, by `momentum`, towards the mean of the
    virtual batches' means and unbiased variances, each weighted by its values (a variance by its
    values − 1). So the running mean is that of torch's layer, the running variance is that within
    virtual batches, without bias, and `momentum` and `num_batches_tracked` mean what they mean in
    torch. The paper updates once for each virtual batch, in order: the same on average, but the
    last ten or so virtual batches then make up the running statistics, and two rows left over count
    as much as a full one. In eval mode there are no virtual batches: the layer normalises by
    the running statistics, and without them by the whole mini-batch.

    Raises ValueError in training for an empty input and for virtual batches of one value per
    channel.
    """

    own_options = ("virtual_batch_size",)

    @showing_options()
    def __init__(
        self,
        num_features: int,
        *arguments: Any,
        virtual_batch_size: int = 32,
        **options: Unpack[BatchNormOptions],
    ) -> None:
        if not isinstance(virtual_batch_size, int) or virtual_batch_size < 1:
            raise ValueError(
                f"`virtual_batch_size` is {virtual_batch_size!r}: pass the rows of a virtual batch "
                f"as an integer of at least 1"
            )
        super().__init__(num_features, *arguments, **options)
        self.virtual_batch_size = virtual_batch_size

    def normalise_by_batch(
        self, input: Tensor, residual: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Normalise each virtual batch of `input` by its own statistics, and track their mean."""
        groups = _virtual_batches(input.shape, self.virtual_batch_size) if self.training else []
        if len(groups) < 2 and all(count == 1 for count, _ in groups):
            return super().normalise_by_batch(input, residual, activation)
        if residual is not None:
            check_residual(input, residual)
        counts = [count for count, _ in groups]
        rows = [count * of_each for count, of_each in groups]
        residuals = [None] * len(groups) if residual is None else residual.split_with_sizes(rows)
        statistics = [self._room_for_statistics(count) for count in counts]
        ys = [
            self._normalise_together(activation, *part)
            for part in zip(
                input.split_with_sizes(rows), residuals, counts, statistics, strict=True
            )
        ]
        if self.tracks and not is_recomputing():
            self._track_average(statistics, [n * input.shape[2:].numel() for _, n in groups])
        return ys[0] if len(ys) == 1 else torch.cat(ys)

    def _room_for_statistics(self, count: int) -> _Statistics:
        """Return where the mean and variance of `count` virtual batches go: (count·C,) each."""
        if not self.tracks:
            return None, None
        mean, _ = self._running_statistics()
        return mean.new_zeros(count * len(mean)), mean.new_zeros(count * len(mean))

    def _normalise_together(
        self,
        activation: str | None,
        input: Tensor,
        residual: Tensor | None,
        count: int,
        statistics: _Statistics,
    ) -> Tensor:
        """Normalise equal virtual batches in one call, in which each has channels of its own."""
        last = _has_channels_last(input)
        affine = [t if t is None else t.repeat(count) for t in (self.weight, self.bias)]
        if residual is not None:
            residual = _side_by_side(residual, count, channels_last=last)
        together = _side_by_side(input, count, channels_last=last)
        # With a share of 1 the statistics become those of this mini-batch alone.
        y = self._normalised(
            together, residual, activation, (affine[0], affine[1]), statistics, 1.0
        )
        return _one_after_another(y, count, channels_last=last)

    def _track_average(self, statistics: list[_Statistics], values: list[int]) -> None:
        means, variances = (
            [s.view(-1, self.num_features) for s in kind if s is not None]
            for kind in zip(*statistics, strict=True)
        )
        self.track(_average(means, values), _average(variances, [n - 1 for n in values]))


def _virtual_batches(shape: torch.Size, virtual_batch_size: int) -> list[_Group]:
    """Return the equal virtual batches and, in a group of its own, the one of the rows left."""
    positions = shape[2:].numel()
    refuse_empty(shape)
    if shape[0] > 1 and virtual_batch_size * positions == 1:
        raise ValueError(
            f"`virtual_batch_size` is 1, so a virtual batch of `input` of shape {tuple(shape)} has "
            f"1 value per channel, of which training can take no variance: use at least 2"
        )
    # No divmod: torch.compile has none of a size that it takes as variable.
    count, rest = shape[0] // virtual_batch_size, shape[0] % virtual_batch_size
    if count and rest * positions == 1:
        count, rest = count - 1, virtual_batch_size + 1
    groups = [(count, virtual_batch_size), (1, rest)]
    return [group for group in groups if all(group)]


def _average(parts: list[Tensor], weights: list[int]) -> Tensor:
    """Return the weighted average of all rows, those of a part with the same weight; (C,)."""
    total = sum(len(part) * weight for part, weight in zip(parts, weights, strict=True))
    dtype = dtype_of_sums(parts[0])
    sums = [
        part.sum(0, dtype=dtype) * (weight / total)
        for part, weight in zip(parts, weights, strict=True)
    ]
    return sums[0] if len(sums) == 1 else sums[0] + sums[1]


def _has_channels_last(values: Tensor) -> bool:
    if values.dim() < 3 or values.is_contiguous():
        return False
    return values.movedim(1, -1).is_contiguous()


def _side_by_side(values: Tensor, count: int, *, channels_last: bool) -> Tensor:
    """(count·rows, C, ...) → (rows, count·C, ...), in the same memory format."""
    values = values.movedim(1, -1) if channels_last else values
    axis = -2 if channels_last else 1
    together = torch.unflatten(values, 0, (count, -1)).movedim(0, axis).flatten(axis, axis + 1)
    return together.movedim(-1, 1) if channels_last else together


def _one_after_another(values: Tensor, count: int, *, channels_last: bool) -> Tensor:
    """(rows, count·C, ...) → (count·rows, C, ...), in the same memory format."""
    values = values.movedim(1, -1) if channels_last else values
    axis = -1 if channels_last else 1
    apart = torch.unflatten(values, axis, (count, -1))
    rows = apart.movedim(-2 if channels_last else 1, 0).flatten(0, 1)
    return rows.movedim(-1, 1) if channels_last else rows


class GhostBatchNorm1d(GhostBatchNorm, nn.BatchNorm1d):
    """Ghost batch norm of inputs (N, C) or (N, C, L); `GhostBatchNorm` says what it computes.

    Arguments and state are those of `bnkit.BatchNorm1d`, and `virtual_batch_size`, the rows of a
    virtual batch, which may be changed later.

    >>> layer = GhostBatchNorm1d(1, virtual_batch_size=2)
    >>> layer(torch.tensor([[0.0], [2.0], [10.0], [14.0]])).flatten()
    tensor([-1.0000,  1.0000, -1.0000,  1.0000], grad_fn=<ViewBackward0>)
    """


class GhostBatchNorm2d(GhostBatchNorm, nn.BatchNorm2d):
    """Ghost batch norm of inputs (N, C, H, W); `GhostBatchNorm` says what it computes.

    >>> layer = GhostBatchNorm2d(3, virtual_batch_size=8, activation="relu")
    >>> x = torch.randn(20, 3, 5, 5)  # virtual batches of 8, 8 and 4 rows
    >>> torch.allclose(layer(x)[8:16], torch.nn.BatchNorm2d(3)(x[8:16]).relu(), atol=1e-6)
    True
    """


class GhostBatchNorm3d(GhostBatchNorm, nn.BatchNorm3d):
    """Ghost batch norm of inputs (N, C, D, H, W); `GhostBatchNorm` says what it computes.

    >>> GhostBatchNorm3d(3, virtual_batch_size=4).virtual_batch_size
    4
    """
