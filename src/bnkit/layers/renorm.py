"""`BatchRenorm1d/2d/3d`: batch statistics in training, corrected by the running ones."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from bnkit.functional import is_recomputing
from bnkit.layers.batch_norm import (
    BatchNormOptions,
    GuardedBatchNorm,
    refuse_empty,
    showing_options,
)


def _is_number(value: object) -> bool:
    """Return whether torch can compute with a number: it takes no integer beyond 64 bits."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and not (isinstance(value, int) and abs(value) >= 2**63)


@dataclass(frozen=True)
class Ramp:
    """A number that goes in a straight line from `first` at step `start` to `last` at step `end`.

    Called with a step, a whole number or a tensor of one, it returns a tensor, without waiting for
    a GPU. Raises ValueError where `end` is not after `start`.

    >>> ramp = Ramp(first=1.0, last=3.0, start=5_000, end=40_000)
    >>> [ramp(step).item() for step in (0, 5_000, 22_500, 40_000, 100_000)]
    [1.0, 1.0, 2.0, 3.0, 3.0]
    """

    first: float
    last: float
    start: int
    end: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (_is_number(value) and math.isfinite(value)):
                raise ValueError(f"`{name}` of a ramp is {value!r}: pass a finite number")
        if not self.start < self.end:
            raise ValueError(
                f"`end` is {self.end} and `start` {self.start}: a ramp ends after it starts; give "
                f"the limit as a number where it stays the same"
            )

    def __call__(self, step: Tensor | int) -> Tensor:
        """Return the number at `step`."""
        progress = (torch.as_tensor(step) - self.start) / (self.end - self.start)
        return self.first + (self.last - self.first) * progress.clamp(0, 1)


Limit = float | Callable[[Tensor], Tensor | float]

# Ioffe 2017, section 4.1: plain batch norm for 5000 steps, then relaxed little by little.
R_MAX = Ramp(first=1.0, last=3.0, start=5_000, end=40_000)
D_MAX = Ramp(first=0.0, last=5.0, start=5_000, end=25_000)


class BatchRenorm(GuardedBatchNorm):
    """What the batch renorms of all ranks share (Ioffe, Batch Renormalization, NIPS 2017).

    In training, with the statistics μ_B, σ_B = √(variance + eps) of the mini-batch and the running
    ones μ, σ before it enters them (algorithm 1),

        y = γ·((x − μ_B) / σ_B · r + d) + β
        r = σ_B / σ within [1 / r_max, r_max]        d = (μ_B − μ) / σ within [−d_max, d_max]

    where no gradient passes through r and d. Within the limits this is (x − μ) / σ, what eval mode
    computes; with r_max = 1 and d_max = 0 it is torch's batch norm. `r_max` and `d_max` are numbers
    (r_max ≥ 1, d_max ≥ 0), or callables that get the step, `num_batches_tracked`, as a tensor
    without dimensions and return the limit; by default those of the paper: 1 and 0 for 5000 steps,
    then in a straight line to 3 at step 40,000 and 5 at step 25,000. The step is part of the state
    dict, so training goes on from a checkpoint with the limits that it had.

    The running statistics are torch's, by `momentum` (the paper's is 0.01) and with the unbiased
    variance, where the paper averages the biased σ. A layer needs them: `track_running_stats=False`
    is a ValueError. Where they have been taken away, the layer is a batch norm. In training the
    statistics are taken once more than by a batch norm, one more forward of it without gradients.

    Raises ValueError in training for an empty input and for one value per channel; RuntimeError
    where activation checkpointing repeats a forward that is not the layer's last one, whose r and d
    are gone.
    """

    own_options = ("r_max", "d_max")

    @showing_options()
    def __init__(
        self,
        num_features: int,
        *arguments: Any,
        r_max: Limit = R_MAX,
        d_max: Limit = D_MAX,
        **options: Unpack[BatchNormOptions],
    ) -> None:
        _check_limit("r_max", r_max, 1)
        _check_limit("d_max", d_max, 0)
        super().__init__(num_features, *arguments, **options)
        if not self.track_running_stats:
            raise ValueError(
                "`track_running_stats` is False, and batch renorm corrects by the running "
                "statistics: leave it True, or use BatchNorm1d/2d/3d"
            )
        self.r_max = r_max
        self.d_max = d_max
        self._last: tuple[Tensor, Tensor, Tensor] | None = None  # μ_B, r and d

    def normalise_by_batch(
        self, input: Tensor, residual: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Normalise by the statistics of `input`, corrected by r and d, and track them."""
        if self.running_mean is None:
            return super().normalise_by_batch(input, residual, activation)
        refuse_empty(input.shape)
        r, d = self._correction(input)
        affine = self._corrected_parameters(r, d)
        return self._normalise_and_track(input, residual, activation, affine)

    def _corrected_parameters(self, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias with r and d in them: γ·(x̂·r + d) + β = (γ·r)·x̂ + (γ·d + β)."""
        weight, bias = (r, d) if self.weight is None else (self.weight * r, self.weight * d)
        return weight, bias if self.bias is None else bias + self.bias

    def _correction(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Return r and d for this mini-batch, (C,) each, in the dtype of the running statistics."""
        mean, invstd = _statistics(input, self.eps)
        if is_recomputing():
            return self._repeated(mean)
        assert self.num_batches_tracked is not None
        running_mean, running_var = (s.to(mean.dtype) for s in self._running_statistics())
        running_invstd = (running_var + self.eps).rsqrt()
        r_max, d_max = (
            limit(self.num_batches_tracked) if callable(limit) else limit
            for limit in (self.r_max, self.d_max)
        )
        r = _clip(running_invstd / invstd, 1 / r_max, r_max)
        d = _clip((mean - running_mean) * running_invstd, -d_max, d_max)
        dtype = self._running_statistics()[0].dtype
        correction = r.to(dtype), d.to(dtype)
        if not torch.compiler.is_compiling():  # there nothing is recomputed by a second forward
            self._last = (mean, *correction)
        return correction

    def _repeated(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return r and d of the forward that activation checkpointing repeats."""
        # The running statistics have moved since, so they cannot be computed again.
        if self._last is None or not torch.equal(self._last[0], mean):
            raise RuntimeError(
                "activation checkpointing repeats a forward of this batch renorm that is not its "
                "last one, and the running statistics it was corrected by are gone: call backward "
                "after each forward, or leave the layer out of the checkpoint"
            )
        return self._last[1:]


def _statistics(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return μ_B and 1 / σ_B of each channel, (C,), in float32 at least."""
    # torch's own, so that they are those by which it normalises, and compile as one operation.
    _, mean, invstd = torch.native_batch_norm(
        input.detach(), None, None, None, None, True, 0.0, eps
    )
    dtype = torch.promote_types(mean.dtype, torch.float32)
    return mean.to(dtype), invstd.to(dtype)


def _clip(values: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    return values.clamp(low, high)  # type: ignore[arg-type]  # both tensors, or both numbers


def _check_limit(name: str, limit: Limit, least: int) -> None:
    if not callable(limit) and not (_is_number(limit) and limit >= least):
        raise ValueError(
            f"`{name}` is {limit!r}: pass a number of at least {least}, or a callable from the "
            f"step to such a number"
        )


class BatchRenorm1d(BatchRenorm, nn.BatchNorm1d):
    """Batch renorm of inputs (N, C) or (N, C, L); `BatchRenorm` says what it computes.

    Arguments and state are those of `bnkit.BatchNorm1d`, and the limits `r_max` and `d_max`,
    which may be changed later.

    >>> layer = BatchRenorm1d(1, r_max=3.0, d_max=5.0)
    >>> x = torch.tensor([[0.0], [2.0]])
    >>> torch.allclose(layer(x), (x - 0) / 1, atol=1e-4)  # running statistics before: 0 and 1
    True
    """


class BatchRenorm2d(BatchRenorm, nn.BatchNorm2d):
    """Batch renorm of inputs (N, C, H, W); `BatchRenorm` says what it computes.

    >>> layer = BatchRenorm2d(3, r_max=Ramp(1, 3, 500, 4000), d_max=Ramp(0, 5, 500, 2500))
    >>> x = torch.randn(8, 3, 5, 5)
    >>> torch.allclose(layer(x), torch.nn.BatchNorm2d(3)(x), atol=1e-6)  # at its first steps
    True
    """


class BatchRenorm3d(BatchRenorm, nn.BatchNorm3d):
    """Batch renorm of inputs (N, C, D, H, W); `BatchRenorm` says what it computes.

    >>> BatchRenorm3d(3, r_max=2.0).d_max(25_000)
    tensor(5.)
    """
