"""`FrozenBatchNorm1d/2d/3d`: always normalises by its running statistics, and never trains."""

from typing import Any, Unpack

from torch import Tensor, nn

from bnkit.internals import check_rank
from bnkit.layers.batch_norm import BatchNormOptions, GuardedBatchNorm, showing_options

_SAVED = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class FrozenBatchNorm(GuardedBatchNorm):
    """What the frozen batch norms of all ranks share: eval mode's arithmetic in every mode.

    `train()` changes the flag `training` and nothing that the layer computes. `weight` and `bias`
    are buffers, as the running statistics are, so they are in the state dict under torch's names
    and in no optimizer: neither `requires_grad_(True)` on the model, nor weight decay, nor clipping
    of gradients, nor DistributedDataParallel touches them. Gradients pass to `input` and
    `residual`. Nothing enters the running statistics, and `reset_running_stats`, which torch's
    `update_bn` calls on every batch norm, leaves them; `reset_parameters` starts anew.

    State dicts of torch's layers load, and those of other libraries' frozen ones, which have no
    `num_batches_tracked`. Empty inputs and one value per channel are normalised like any other.
    `momentum` and `guard` are kept for the day the layer is thawed. Raises ValueError for
    `track_running_stats=False`, and RuntimeError where the running statistics have been taken away.
    """

    @showing_options()
    def __init__(
        self, num_features: int, *arguments: Any, **options: Unpack[BatchNormOptions]
    ) -> None:
        super().__init__(num_features, *arguments, **options)
        if not self.track_running_stats:
            raise ValueError(
                "`track_running_stats` is False, and a frozen batch norm has only its running "
                "statistics to normalise by: leave it True, or use BatchNorm1d/2d/3d"
            )
        # Weight and bias become buffers, as the statistics are.
        tensors = {name: getattr(self, name) for name in _SAVED}
        for name in tensors:
            delattr(self, name)
        for name, value in tensors.items():  # all anew: the state dict has torch's order
            self.register_buffer(name, None if value is None else value.detach())

    def activated(self, input: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
        """Return activation(batch_norm(input) + residual), by the running statistics."""
        check_rank(self, input)
        if self.running_mean is None or self.running_var is None:
            raise RuntimeError(
                "`running_mean` and `running_var` of a frozen batch norm have been taken away, and "
                "it normalises by nothing else: give them back, or use BatchNorm1d/2d/3d"
            )
        return self.normalise_by_running_statistics(input, residual, activation)

    @property
    def tracks(self) -> bool:
        """False: no mini-batch ever enters the running statistics."""
        return False

    def reset_running_stats(self) -> None:
        """Leave the running statistics as they are; `reset_parameters` resets them."""

    def reset_parameters(self) -> None:
        """Set running statistics, weight and bias to 0 and 1, as torch's layers start."""
        super().reset_running_stats()
        super().reset_parameters()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *details: Any) -> None:
        # Other libraries' frozen batch norms count no mini-batches.
        state_dict.setdefault(f"{prefix}num_batches_tracked", self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, *details)


class FrozenBatchNorm1d(FrozenBatchNorm, nn.BatchNorm1d):
    """Frozen batch norm of inputs (N, C) or (N, C, L); `FrozenBatchNorm` says what that is.

    >>> import torch
    >>> layer = FrozenBatchNorm1d(2).train().requires_grad_(True)
    >>> layer(torch.tensor([[3.0, 4.0]])), list(layer.parameters())
    (tensor([[3.0000, 4.0000]]), [])
    """


class FrozenBatchNorm2d(FrozenBatchNorm, nn.BatchNorm2d):
    """Frozen batch norm of inputs (N, C, H, W); `FrozenBatchNorm` says what that is.

    >>> import torch
    >>> trained = torch.nn.BatchNorm2d(3)
    >>> FrozenBatchNorm2d(3, eps=trained.eps).load_state_dict(trained.state_dict())
    <All keys matched successfully>
    """


class FrozenBatchNorm3d(FrozenBatchNorm, nn.BatchNorm3d):
    """Frozen batch norm of inputs (N, C, D, H, W); `FrozenBatchNorm` says what that is.

    >>> list(FrozenBatchNorm3d(3).state_dict())
    ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
