"""`BatchNorm1d/2d/3d`: drop-in for torch's, with an activation and a residual."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnkit.functional import batch_norm
from bnkit.kernels.activations import find_activation


class _ActivatedBatchNorm(_BatchNorm):
    """What the three layers share; they differ in the shapes that torch's classes accept."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        find_activation(activation)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.activation = activation

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return activation(batch_norm(input) + residual), in the shape and dtype of `input`."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        running_mean, running_var = self.running_mean, self.running_var
        momentum = self.momentum
        if self.training and self.track_running_stats:
            momentum = self._count_batch()
        elif self.training:
            running_mean = running_var = None
        return batch_norm(
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            self.training or (running_mean is None and running_var is None),
            0.0 if momentum is None else momentum,
            self.eps,
            activation=self.activation,
            residual=residual,
        )

    def _count_batch(self) -> float | None:
        """Count one more batch; return the share that it has in the running statistics."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average over all batches so far
                return 1.0 / float(self.num_batches_tracked)
        return self.momentum

    def extra_repr(self) -> str:
        """Return torch's line, and the activation where there is one."""
        activation = "" if self.activation is None else f", activation={self.activation!r}"
        return f"{super().extra_repr()}{activation}"  # type: ignore[no-untyped-call]


class BatchNorm1d(_ActivatedBatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d with `activation=` and a residual: inputs (N, C) or (N, C, L).

    Same arguments, state and results as torch's, so checkpoints load both ways. `activation` is
    one of those of `bnkit.functional.batch_norm`, which says what is computed and which errors
    are raised; forward takes an optional `residual`, added before the activation.

    >>> layer = BatchNorm1d(3, activation="relu")
    >>> isinstance(layer, torch.nn.BatchNorm1d), layer(torch.randn(8, 3)).min().item()
    (True, 0.0)
    """


class BatchNorm2d(_ActivatedBatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d with `activation=` and a residual: inputs (N, C, H, W).

    >>> layer = BatchNorm2d(3, activation="relu")
    >>> x = torch.randn(8, 3, 5, 5)
    >>> torch.equal(layer(x, residual=x), torch.relu(torch.nn.BatchNorm2d(3)(x) + x))
    True
    """


class BatchNorm3d(_ActivatedBatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d with `activation=` and a residual: inputs (N, C, D, H, W).

    >>> BatchNorm3d(3, activation="silu")
    BatchNorm3d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True, \
activation='silu')
    """
