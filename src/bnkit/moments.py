"""`Moments`: the count, mean and squared deviations of each channel, pooled with `+`.

Every statistic outside the kernels goes through this record, so that E[x²] − E[x]², which loses
all digits when the mean is large beside the spread, appears nowhere.
"""

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
        channels = _channels_first(values, channel_axis)
        mean = channels.mean(1)
        return cls(channels.shape[1], mean, (channels - mean[:, None]).square().sum(1))

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


def _channels_first(values: Tensor, channel_axis: int) -> Tensor:
    if not -values.dim() <= channel_axis < values.dim():
        raise ValueError(
            f"`values` of shape {tuple(values.shape)} has no axis {channel_axis} for its channels: "
            f"pass at least {max(channel_axis + 1, -channel_axis)} dimensions, or `channel_axis=`"
        )
    channels = values.detach().movedim(channel_axis, 0).flatten(1)  # (C, everything else)
    if not channels.shape[1]:
        raise ValueError(f"`values` of shape {tuple(values.shape)} is empty: it has no moments")
    return channels.to(dtype_of_sums(values))


def dtype_of_sums(values: Tensor) -> torch.dtype:
    """Return the dtype in which `values` are summed: float64 wherever their device has it.

    >>> dtype_of_sums(torch.ones(1))
    torch.float64
    """
    # Apple's GPU backend has no float64.
    return torch.float32 if values.device.type == "mps" else torch.float64
