"""`AccumulatedBatchNorm1d/2d/3d`: the micro-batches of gradient accumulation share statistics."""

from collections import deque
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.autograd import Function

from bnkit.functional import is_recomputing
from bnkit.layers.activated import ActivatedNorm
from bnkit.layers.batch_norm import BatchNormOptions, GuardedBatchNorm, showing_options
from bnkit.moments import Moments


class AccumulatedBatchNorm(GuardedBatchNorm):
    """What the accumulated layers share: the moments so far, and how they normalise."""

    own_options = ("micro_batches",)

    @showing_options()
    def __init__(
        self,
        num_features: int,
        *arguments: Any,
        micro_batches: int,
        **options: Unpack[BatchNormOptions],
    ) -> None:
        if type(micro_batches) is not int or not 1 <= micro_batches < 2**63:
            raise ValueError(
                f"`micro_batches` is {micro_batches!r}: pass the number of micro-batches in one "
                f"optimizer step, an integer of at least 1"
            )
        super().__init__(num_features, *arguments, **options)
        self.micro_batches = micro_batches
        self.reset_accumulation()

    def reset_accumulation(self) -> None:
        """Forget the micro-batches since the last full accumulation; the next one is the first."""
        self.micro_batch = 0  # how many the accumulation under way has
        self._pooled: Moments | None = None  # of those
        # By its own moments a micro-batch is known again when activation checkpointing runs its
        # forward for the second time, and then it needs what was pooled before it.
        self._seen: deque[tuple[Moments, Moments | None]] = deque(maxlen=self.micro_batches)

    def normalise_by_batch(
        self, input: Tensor, residual: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Normalise by the moments pooled so far, those of `input` included; track those of all."""
        if not self.training or self.micro_batches == 1:
            return super().normalise_by_batch(input, residual, activation)
        own = _moments(input)
        before = self._pooled_before(own)
        pooled = own if before is None else before + own
        affine = (self.weight, self.bias) if before is None else self._affine(input, own, pooled)
        y = self._normalised(input, residual, activation, affine, (None, None), 0.0)
        if not is_recomputing():
            self._advance(_detached(own), _detached(pooled))
        return y

    def _pooled_before(self, own: Moments) -> Moments | None:
        if not is_recomputing():
            return self._pooled
        for known, before in reversed(self._seen):
            if _are_equal(known, own):
                return before
        raise RuntimeError(
            f"{type(self).__name__}({self.num_features}) runs again inside backward(), as "
            f"activation checkpointing does, with a micro-batch that is not among its last "
            f"{self.micro_batches}: call backward() before the forward of the next accumulation "
            f"and before reset_accumulation()"
        )

    def _affine(self, input: Tensor, own: Moments, pooled: Moments) -> tuple[Tensor, Tensor]:
        """Return the weight and bias that turn x̂ by `own` moments into γ·x̂ + β by `pooled` ones.

        With (μ, σ²) for own and (M, S²) for pooled moments,
        (x − M)/√(S² + ε) = (x − μ)/√(σ² + ε) · √(σ² + ε)/√(S² + ε) + (μ − M)/√(S² + ε).
        """
        invstd = (pooled.variance + self.eps).rsqrt()
        weight = (own.variance + self.eps).sqrt() * invstd
        bias = (own.mean - pooled.mean) * invstd
        if self.weight is not None:
            weight, bias = weight * self.weight, bias * self.weight
        if self.bias is not None:
            bias = bias + self.bias
        dtype = torch.promote_types(input.dtype, torch.float32)
        return weight.to(dtype), bias.to(dtype)

    def _advance(self, own: Moments, pooled: Moments) -> None:
        if not torch.compiler.is_compiling():  # there nothing is checkpointed by hand
            self._seen.append((own, self._pooled))
        self._pooled = pooled
        self.micro_batch += 1
        if self.micro_batch >= self.micro_batches:
            self.track(pooled.mean, pooled.unbiased_variance)
            self._pooled, self.micro_batch = None, 0


def reset_accumulation_(model: nn.Module) -> int:
    """Forget the unfinished accumulations of `model`, in place; return how many layers had one.

    Call it where fewer micro-batches than usual made an optimizer step, as at the end of an epoch:
    what they had in common would else be pooled with the next ones. Their moments do not enter the
    running statistics. Raises ValueError for a model without accumulated batch norms.

    >>> model = nn.Sequential(AccumulatedBatchNorm1d(1, micro_batches=4))
    >>> _ = model(torch.randn(8, 1))
    >>> reset_accumulation_(model), reset_accumulation_(model)
    (1, 0)
    """
    inside = [m for m in model.modules() if type(m) is not ActivatedNorm]
    layers = [layer for layer in inside if isinstance(layer, AccumulatedBatchNorm)]
    if not layers:
        raise ValueError(
            f"`model` ({type(model).__name__}) has no accumulated batch norm, so there is nothing "
            f'to reset: make some by bnkit.convert(model, "accumulated", micro_batches=...)'
        )
    unfinished = [layer for layer in layers if layer.micro_batch]
    for layer in layers:
        layer.reset_accumulation()
    return len(unfinished)


def _moments(x: Tensor) -> Moments:
    """Return the moments of `x` (N, C, ...), through which gradients flow."""
    if not x.numel():
        raise ValueError(
            f"`input` of shape {tuple(x.shape)} is empty: leave micro-batches without values out"
        )
    mean, deviations = _MeanAndDeviations.apply(x)  # type: ignore[no-untyped-call]
    return Moments(x.numel() // x.shape[1], mean, deviations)


class _MeanAndDeviations(Function):
    """The mean and the sum of squared deviations of each channel, as `Moments.of` has them."""

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        moments = Moments.of(x)
        return moments.mean, moments.deviations

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, dmean: Tensor, ddeviations: Tensor) -> Tensor:
        """Return ∂/∂x: 1/m through the mean, 2·(x − mean) through Σ (x − mean)².

        The latter has no part through its mean, since Σ (x − mean) = 0.
        """
        x, mean = ctx.saved_tensors
        dtype = torch.promote_types(x.dtype, torch.float32)
        dmean, ddeviations, mean = (
            values.to(dtype).reshape(1, -1, *[1] * (x.dim() - 2))
            for values in (dmean / (x.numel() // x.shape[1]), ddeviations, mean)
        )
        dx: Tensor = dmean + 2 * (x.to(dtype) - mean) * ddeviations
        return dx.to(x.dtype)


def _detached(moments: Moments) -> Moments:
    return Moments(moments.count, moments.mean.detach(), moments.deviations.detach())


def _are_equal(one: Moments, other: Moments) -> bool:
    """Return whether two moments are the same to the last bit, NaN for NaN."""
    return one.count == other.count and all(
        torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
        for a, b in ((one.mean, other.mean), (one.deviations, other.deviations))
    )


class AccumulatedBatchNorm1d(AccumulatedBatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d for gradient accumulation: inputs (N, C) or (N, C, L).

    `micro_batches=k` is the number of forward passes that one optimizer step takes. In training
    micro-batch i of an accumulation is normalised by the pooled moments of micro-batches 1 to i;
    gradients flow through its own share of them; those of the earlier ones are constants. The
    running statistics, `num_batches_tracked` and `momentum` know only whole accumulations.

    Exact, to rounding, for micro-batches of any sizes: the running statistics are those of torch's
    layer on the whole mini-batch, and so are the outputs of the last micro-batch, given the same
    inputs. With k = 1, and in eval mode, all is torch's. Not exact: the outputs of the earlier
    micro-batches, which cannot know the later ones (the first is normalised by itself alone), what
    follows from these in deeper layers, and the gradients, of which the part through the
    statistics of other micro-batches is missing.

    Each forward in training counts, so a layer that is called n times in one forward of its model
    takes micro_batches=n·k; eval mode changes nothing. Discard an accumulation that ends early by
    `reset_accumulation()` or `bnkit.layers.reset_accumulation_(model)`; checkpoints do not hold it.
    A micro-batch that is not finite makes the rest of its accumulation so: the guard keeps all of
    it out of the running statistics and counts one non-finite batch.

    Activation checkpointing counts a micro-batch once, whose backward may follow after all k
    forwards; a second forward that is unknown raises RuntimeError. torch.compile(fullgraph=True)
    takes both modes; in training it makes k graphs, so k over 8 needs a larger
    torch._dynamo.config.recompile_limit. Further arguments are those of `bnkit.BatchNorm1d`;
    `micro_batches` other than an integer of at least 1 raises ValueError, and in training so does
    a micro-batch that is empty or has one value per channel.

    >>> layer = AccumulatedBatchNorm1d(1, micro_batches=2, momentum=1.0)
    >>> for micro_batch in torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]]):
    ...     layer(micro_batch).flatten().detach()
    tensor([-1.0000,  1.0000])
    tensor([0.4472, 1.3416])
    >>> layer.running_mean, layer.num_batches_tracked
    (tensor([4.]), tensor(1))
    """


class AccumulatedBatchNorm2d(AccumulatedBatchNorm, nn.BatchNorm2d):
    """`AccumulatedBatchNorm1d` for inputs (N, C, H, W).

    >>> AccumulatedBatchNorm2d(3, micro_batches=4)
    AccumulatedBatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, \
track_running_stats=True, micro_batches=4)
    """


class AccumulatedBatchNorm3d(AccumulatedBatchNorm, nn.BatchNorm3d):
    """`AccumulatedBatchNorm1d` for inputs (N, C, D, H, W).

    >>> layer = AccumulatedBatchNorm3d(3, micro_batches=4)
    >>> _ = layer(torch.randn(2, 3, 2, 2, 2))
    >>> layer.micro_batch
    1
    """
