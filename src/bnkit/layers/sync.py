"""`SyncBatchNorm1d/2d/3d`: statistics over the mini-batches of all ranks of torch.distributed."""

import dataclasses
import math
from functools import reduce
from operator import add
from typing import Any, NamedTuple, Unpack

import torch
import torch.distributed as dist
from torch import Tensor

from bnkit.functional import check_residual
from bnkit.kernels.reference import batch_norm_backward, batch_norm_inference
from bnkit.layers.batch_norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormOptions,
    GuardedBatchNorm,
    showing_options,
)
from bnkit.layers.exchange import Place, Ranks, exchange, is_without_other_ranks
from bnkit.moments import Moments, dtype_of_sums


class SynchronisedBatchNorm(GuardedBatchNorm):
    """What the three share: in training, the statistics of all ranks' mini-batches together.

    `process_group` is the torch.distributed group to pool over, None the default group.
    `sync_name` is what errors call the layer, on all ranks; by default its class. Both may be set
    later. `SyncBatchNorm1d` says what is exact and what is demanded of the ranks.
    """

    @showing_options()
    def __init__(
        self,
        num_features: int,
        *arguments: Any,
        process_group: dist.ProcessGroup | None = None,
        sync_name: str | None = None,
        **options: Unpack[BatchNormOptions],
    ) -> None:
        super().__init__(num_features, *arguments, **options)
        self.process_group = process_group
        self.sync_name = type(self).__name__ if sync_name is None else sync_name

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The group over which statistics are pooled; None is torch.distributed's default group."""
        return self._ranks.group

    @process_group.setter
    def process_group(self, group: dist.ProcessGroup | None) -> None:
        self._ranks = Ranks(group)

    def normalise_by_batch(
        self, input: Tensor, residual: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Normalise by the statistics of all ranks' mini-batches; in eval mode by its own."""
        if not self.training or self._ranks.is_alone(self.sync_name):
            return super().normalise_by_batch(input, residual, activation)
        meet = self._normalise_with_others
        if torch.compiler.is_compiling():  # ranks meet outside compiled graphs
            meet = torch.compiler.disable(meet)  # type: ignore[no-untyped-call]
        return meet(input, residual, activation)

    def _normalise_with_others(
        self, input: Tensor, residual: Tensor | None, activation: str | None
    ) -> Tensor:
        self._check(input, residual)
        if is_without_other_ranks():
            return super().normalise_by_batch(input, residual, activation)
        place = self._ranks.next_call(self.sync_name, self.num_features)
        moments = pool_moments(input, place, self.process_group)
        if moments.count == 0:  # on all ranks alike, as on one with an empty mini-batch
            return super().normalise_by_batch(input, residual, activation)
        if moments.count == 1:
            raise ValueError(
                f"`input` has 1 value per channel over all ranks together (on this one its shape "
                f"is {tuple(input.shape)}), of which training can take no variance: use larger "
                f"mini-batches, or call .eval() on the layer of every rank"
            )
        y: Tensor = _Normalisation.apply(  # type: ignore[no-untyped-call]
            input,
            residual,
            self.weight,
            self.bias,
            _Meeting(moments, place, self._ranks, eps=self.eps, activation=activation),
        )
        self.track(moments.mean, moments.unbiased_variance)
        return y

    def _check(self, input: Tensor, residual: Tensor | None) -> None:
        if input.shape[1] != self.num_features:
            raise RuntimeError(  # torch's type
                f"`input` of shape {tuple(input.shape)} has {input.shape[1]} channels and layer "
                f"'{self.sync_name}' {self.num_features}: make it with "
                f"num_features={input.shape[1]}"
            )
        if residual is not None:
            check_residual(input, residual)


class SyncBatchNorm1d(SynchronisedBatchNorm, BatchNorm1d):
    """BatchNorm1d over the mini-batches of all ranks: inputs (N, C) or (N, C, L).

    In training the ranks of `process_group` normalise by the statistics of all their mini-batches
    together, on CPUs (gloo) as on GPUs. Counts, means and squared deviations are exchanged, in
    float64, and merged exactly, so the mini-batches may differ in size; a rank may have an empty
    one, and still calls forward and backward. Outputs, gradients and running statistics are those
    of one process with the whole batch, for a loss that is the sum of the ranks' losses.
    DistributedDataParallel divides the gradients of the parameters by the number of ranks: so let
    each rank's loss be the sum over its rows, times the number of ranks, divided by the rows of
    all ranks. A mean over each rank's own rows is another loss where their numbers differ.

    Nothing is exchanged in eval mode, before torch.distributed is initialised and in a group of
    one: there it is BatchNorm1d. Otherwise all ranks must call the same layers in the same order,
    forward and backward. A rank that meets another in another layer, or none within the time
    limit of the group (`make_group(timeout)` makes one; the default group's is often 30 minutes),
    raises SyncError, as does each rank that waits for one that died. A group whose only backend
    is not gloo keeps to the limits of that backend.

    A copy shares the process group. A pickle leaves it out: a layer that had one asks for
    `process_group` to be set. Checkpoints are those of torch. A second derivative is refused.

    >>> layer = SyncBatchNorm1d(3, activation="relu", sync_name="features.1")
    >>> isinstance(layer, SyncBatchNorm1d), layer(torch.randn(8, 3)).min().item()
    (True, 0.0)
    """


class SyncBatchNorm2d(SynchronisedBatchNorm, BatchNorm2d):
    """`SyncBatchNorm1d` for inputs (N, C, H, W).

    >>> SyncBatchNorm2d(3)(torch.ones(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """


class SyncBatchNorm3d(SynchronisedBatchNorm, BatchNorm3d):
    """`SyncBatchNorm1d` for inputs (N, C, D, H, W).

    >>> SyncBatchNorm3d(3)(torch.ones(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """


def pool_moments(values: Tensor, place: Place, group: dist.ProcessGroup | None) -> Moments:
    """Return the moments of the `values` of all ranks of `group`, the same bits on each.

    Channels are axis 1. A rank may have no values; without any the count is 0. Raises SyncError
    where a rank of the group is not at `place`.
    """
    count = math.prod((*values.shape[:1], *values.shape[2:]))
    counts, shares = exchange(count, _mean_and_deviations(values), place, group)
    brought = [Moments(n, *share) for n, share in zip(counts, shares, strict=True) if n]
    return reduce(add, brought) if brought else Moments(0, *shares[0])


def _mean_and_deviations(values: Tensor) -> Tensor:
    if not values.numel():
        return values.new_zeros(2, values.shape[1], dtype=dtype_of_sums(values))
    own = Moments.of(values)
    return torch.stack([own.mean, own.deviations])  # (2, C)


class _Meeting(NamedTuple):
    """What the ranks have in common in one call of a layer: moments, place, and the options."""

    moments: Moments
    place: Place
    ranks: Ranks
    eps: float
    activation: str | None


class _Normalisation(torch.autograd.Function):
    """Batch norm by given moments of the whole batch, of which x is the part of this rank."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        meeting: _Meeting,
    ) -> Tensor:
        # The gradient of a residual needs it only where an activation follows.
        moments, _, _, eps, activation = ctx.meeting = meeting
        kept = None if activation is None else residual
        ctx.save_for_backward(x, kept, weight, bias)
        statistics = moments.mean, moments.variance
        return batch_norm_inference(
            x, *statistics, weight, bias, eps=eps, activation=activation, residual=residual
        )

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Return the share of this rank in the gradients of the whole batch.

        Those of weight and bias are sums over its own rows: the sum over the ranks is that of all.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"the {ctx.meeting.place} has no second derivative: call backward without "
                f"create_graph=True, or use batch norms that are not synchronised"
            )
        x, residual, weight, bias = ctx.saved_tensors
        moments, place, ranks, eps, activation = ctx.meeting
        wide_x = x.to(torch.promote_types(x.dtype, torch.float32))
        # γ and β in the dtype of sums: then their gradients, which are the sums, come in it.
        gamma = torch.ones_like(moments.mean) if weight is None else weight.to(moments.mean)
        beta = torch.zeros_like(moments.mean) if bias is None else bias.to(moments.mean)
        given = wide_x, moments.mean, moments.variance, gamma, beta
        dx, by_gamma, by_beta, dresidual = batch_norm_backward(
            dy, *given, eps=eps, activation=activation, residual=residual, training=False
        )
        assert by_gamma is not None
        assert by_beta is not None
        totals = _sum_over_ranks(torch.stack([by_gamma, by_beta]), place, ranks)
        dx = dx - _through_statistics(wide_x, moments, gamma, totals, eps)
        if activation is None and ctx.needs_input_grad[1]:
            dresidual = dy
        dweight = None if weight is None else by_gamma.to(weight.dtype)
        dbias = None if bias is None else by_beta.to(bias.dtype)
        return dx.to(x.dtype), dresidual, dweight, dbias, None


def _through_statistics(
    x: Tensor, moments: Moments, gamma: Tensor, totals: Tensor, eps: float
) -> Tensor:
    """Return what `batch_norm_backward` leaves out where it takes μ and σ² as constants.

    With sums over all ranks and m values per channel, it says

        ∂ℓ/∂x = γ/√(σ² + ε) · (∂ℓ/∂z − Σ ∂ℓ/∂z / m − x̂ · Σ ∂ℓ/∂z·x̂ / m),

    so what is missing is a multiple of x̂ and a constant in each channel, as batch norm itself.
    `totals` are Σ ∂ℓ/∂z·x̂ and Σ ∂ℓ/∂z, (2, C).
    """
    slope = gamma * (moments.variance + eps).rsqrt()
    weight, bias = slope * totals / moments.count
    return batch_norm_inference(x, moments.mean, moments.variance, weight, bias, eps=eps)


def _sum_over_ranks(values: Tensor, place: Place, ranks: Ranks) -> Tensor:
    _, shares = exchange(0, values, dataclasses.replace(place, phase="backward"), ranks.group)
    return torch.stack(shares).sum(0)
