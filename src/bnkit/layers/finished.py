"""Torch's normalisations that end as bnkit's do: a residual is added, an activation follows."""

from typing import Any

from torch import Tensor, nn

from bnkit.kernels.activations import find_activation
from bnkit.layers.affine import finish


class Finished(nn.Module):
    """What all of them share: torch's forward, then activation(y + residual).

    They are what `convert` makes of layers that have an activation, or are called with a residual,
    where the new kind of layer is torch's, which has neither. The arguments are those of torch's
    class, and `activation`, one of those of `bnkit.functional.batch_norm`; state dicts are torch's.

    >>> import torch
    >>> layer, x = FinishedBatchNorm2d(3, activation="relu"), torch.randn(8, 3, 5, 5)
    >>> torch.equal(layer(x, residual=x), torch.relu(torch.nn.BatchNorm2d(3)(x) + x))
    True
    """

    def __init__(self, *args: Any, activation: str | None = None, **options: Any) -> None:
        find_activation(activation)
        super().__init__(*args, **options)
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return activation(normalised input + residual)."""
        return finish(super().forward(input), residual, self.activation)

    def extra_repr(self) -> str:
        """Return torch's line, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation!r}"


class FinishedBatchNorm1d(Finished, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, then a residual and an activation."""


class FinishedBatchNorm2d(Finished, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d, then a residual and an activation."""


class FinishedBatchNorm3d(Finished, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d, then a residual and an activation."""


class FinishedGroupNorm(Finished, nn.GroupNorm):
    """torch.nn.GroupNorm, then a residual and an activation."""


class FinishedInstanceNorm1d(Finished, nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d, then a residual and an activation."""


class FinishedInstanceNorm2d(Finished, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d, then a residual and an activation."""


class FinishedInstanceNorm3d(Finished, nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d, then a residual and an activation."""
