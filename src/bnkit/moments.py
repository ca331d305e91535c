"""`Moments`: the count, mean and squared deviations of each channel, pooled with `+`.

Every statistic outside the kernels goes through this record, so that E[x²] − E[x]², which loses
all digits when the mean is large beside the spread, appears nowhere.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of each channel; add two to pool them.

    `mean` and `deviations` have shape (C,) and dtype float64 (float32 on devices without it).
    Pooling is Chan's merge (Chan, Golub and LeVeque 1983, equations 2.1), which is exact for
    batches of any sizes and includes the variance between them.

    >>> halves = Moments.of(torch.tensor([[1.0], [2.0]])) + Moments.of(torch.tensor([[6.0]]))
    >>> halves.count, halves.mean.item(), halves.variance.item()
    (3, 3.0, 4.666666666666667)
    """

    count: int
    mean: Tensor  # (C,)
    deviations: Tensor  # (C,), sum of (x - mean)²

    @classmethod
    def of(cls, values: Tensor, *, channel_axis: int = 1) -> "Moments":
        """Return the moments of each channel of `values` over all its other axes.

        Raises ValueError for `values` without a channel axis or without values.

        >>> Moments.of(torch.arange(6.0).reshape(2, 3)).mean
        tensor([1.5000, 2.5000, 3.5000], dtype=torch.float64)
        """
        _check(values, channel_axis)
        counts, means, deviations = _groups(values.detach().movedim(channel_axis, 1))
        if len(counts) == 1:
            return cls(counts[0], means[0], deviations[0])
        count, counted = sum(counts), means.new_tensor(counts)[:, None]  # (groups, 1)
        mean = means[0] + (counted * (means - means[0])).sum(0) / count
        between = counted * (means - mean).square()
        return cls(count, mean, (deviations + between).sum(0))

    @classmethod
    def of_rows(cls, values: Tensor) -> "Moments":
        """Return the moments of the means of the rows of `values` (N, C, ...), N of them.

        Values of one row depend on each other, so chance moves the mean as `squared_error` of
        these says, with rows as the units of sampling.

        >>> Moments.of_rows(torch.tensor([[[1.0, 3.0]], [[4.0, 6.0]]])).squared_error.item()
        2.25
        """
        if values.dim() > 2:
            values = values.detach().flatten(2).mean(2, dtype=dtype_of_sums(values))
        return cls.of(values)

    def __add__(self, other: "Moments") -> "Moments":
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"moments of {len(self.mean)} and of {len(other.mean)} channels cannot be pooled: "
                f"pool only moments of the same layer"
            )
        count = self.count + other.count
        gap = other.mean - self.mean
        return Moments(
            count,
            self.mean + gap * (other.count / count),
            self.deviations + other.deviations + gap.square() * (self.count * other.count / count),
        )

    @property
    def variance(self) -> Tensor:
        """The biased variance (divided by the count), by which batch norm normalises; (C,)."""
        return self.deviations / self.count

    @property
    def unbiased_variance(self) -> Tensor:
        """The unbiased variance (divided by the count − 1), which running_var stores; (C,).

        Raises ValueError for one value per channel, where it is undefined.
        """
        if self.count < 2:
            raise ValueError(
                f"the unbiased variance needs at least 2 values per channel, and count is "
                f"{self.count}: pool more batches first"
            )
        return self.deviations / (self.count - 1)

    @property
    def squared_error(self) -> Tensor:
        """The squared standard error of the mean, (C,): infinite for one value, of no spread."""
        if self.count < 2:
            return torch.full_like(self.mean, math.inf)
        return self.unbiased_variance / self.count


def _check(values: Tensor, channel_axis: int) -> None:
    least = max(channel_axis + 1, -channel_axis, 2)
    if values.dim() < least:
        raise ValueError(
            f"`values` of shape {tuple(values.shape)} has no axis {channel_axis} for its channels "
            f"beside those for their values: pass at least {least} dimensions, or `channel_axis=`"
        )
    if not values.numel():
        raise ValueError(f"`values` of shape {tuple(values.shape)} is empty: it has no moments")


# Values that are converted to float64 together. What they become stays in the cache of a CPU's
# core, which takes a quarter of the time of whole arrays; on GPUs fewer launches count for more.
_TILE = {"cpu": 2**16}
_TILE_ELSEWHERE = 2**25
_SHORT = 8  # on planes of fewer values a sum each costs more than its work


def _groups(values: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """Return the counts, means and deviations of groups of `values` (N, C, ...).

    The groups are the planes of the samples, or rows of channels where these lie side by side in
    memory; means and deviations are (groups, C).
    """
    size, channels = _TILE.get(values.device.type, _TILE_ELSEWHERE), values.shape[1]
    length = values[0, 0].numel()
    if values.stride(1) == 1 or length < _SHORT:
        rows = torch.split(values.movedim(1, -1).reshape(-1, channels), max(1, size // channels))
        means, deviations = zip(*(_mean_and_deviations(tile, axis=0) for tile in rows), strict=True)
        return [len(tile) for tile in rows], torch.stack(means), torch.stack(deviations)
    planes = torch.split(values.flatten(2).flatten(0, 1), max(1, size // length))
    means, deviations = zip(*(_mean_and_deviations(tile, axis=1) for tile in planes), strict=True)
    shape = (-1, channels)
    return [length] * len(values), torch.cat(means).view(shape), torch.cat(deviations).view(shape)


def _mean_and_deviations(tile: Tensor, *, axis: int) -> tuple[Tensor, Tensor]:
    wide = tile.to(dtype_of_sums(tile), copy=True)
    mean = wide.mean(axis, keepdim=True)
    wide -= mean
    if axis:  # fast along what lies side by side in memory, slow across it
        return mean.squeeze(1), torch.linalg.vector_norm(wide, dim=1).square_()
    return mean.squeeze(0), wide.square_().sum(0)


def dtype_of_sums(values: Tensor) -> torch.dtype:
    """Return the dtype in which `values` are summed: float64 wherever their device has it.

    >>> dtype_of_sums(torch.ones(1))
    torch.float64
    """
    # Apple's GPU backend has no float64.
    return torch.float32 if values.device.type == "mps" else torch.float64
