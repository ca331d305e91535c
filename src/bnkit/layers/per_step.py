"""`PerStepBatchNorm1d`: batch norm with running statistics of its own for each time step."""

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from bnkit.functional import is_recomputing
from bnkit.layers.batch_norm import GuardedBatchNorm, KeywordOptions, showing_options


class PerStepBatchNorm1d(GuardedBatchNorm):
    """Batch norm inside a recurrent layer: shared weight and bias, statistics for each step.

    Section 3 of Cooijmans et al. 2017, "Recurrent Batch Normalization" (arXiv:1603.09025): the
    activations of a recurrent layer differ so much over the first steps that statistics averaged
    over time harm it; γ starts at 0.1, so that the tanh that follows passes gradients on.
    `running_mean` and `running_var` are (max_steps, C), `num_batches_tracked` is (max_steps,): how
    many mini-batches reached each step. Steps after the last that training has seen, or after
    `max_steps`, use the statistics of that one.

    The recurrent layer hands the statistics in, so that it copies and tracks them once a sequence:
    `of_steps` gives those of its steps; forward, while it trains, writes the mini-batch's over
    them; `track` takes them in. A mini-batch with a statistic that is not finite, at any step, is
    left out and counted in `non_finite_batches`.

    >>> layer = PerStepBatchNorm1d(3, max_steps=5)
    >>> statistics = layer.of_steps(0, 2)
    >>> y = layer(torch.randn(8, 3, 2) + 10, *statistics)
    >>> layer.track(*statistics)
    >>> layer.num_batches_tracked
    tensor([1, 1, 0, 0, 0])
    """

    weight: nn.Parameter
    num_batches_tracked: Tensor

    own_options = ("max_steps",)

    @showing_options()
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        max_steps: int,
        **options: Unpack[KeywordOptions],
    ) -> None:
        _check_max_steps(max_steps)
        super().__init__(num_features, eps, momentum, **options)
        self.max_steps = max_steps
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            of_one_step = getattr(self, name)
            self.register_buffer(name, of_one_step.repeat(max_steps, *[1] * of_one_step.dim()))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickle; of bnkit 0.1 it has an activation, now an argument."""
        super().__setstate__({k: v for k, v in state.items() if k != "activation"})

    def reset_parameters(self) -> None:
        """Forget the statistics; γ is 0.1 again and β, if any, 0."""
        super().reset_parameters()
        nn.init.constant_(self.weight, 0.1)

    def of_steps(self, first_step: int, steps: int) -> tuple[Tensor, Tensor]:
        """Return copies of running mean and variance, (steps, C), from `first_step` (0, ...) on."""
        if self.running_mean is None:  # room for those of the mini-batch, as others rely on
            room = self.weight.new_zeros(2, steps, self.num_features)
            return room[0], room[1]
        running_mean, running_var = self._running_statistics()
        known = torch.arange(1, self.max_steps + 1, device=running_mean.device)
        last = torch.where(self.num_batches_tracked > 0, known, 0).amax()
        last = torch.where(last > 0, last, self.max_steps) - 1  # untrained: all rows are as good
        wanted = torch.arange(first_step, first_step + steps, device=last.device)
        rows = torch.minimum(wanted, last)
        return running_mean[rows], running_var[rows]

    @property
    def needs_batch(self) -> bool:
        """Whether it normalises by the mini-batch: in training, or without running statistics."""
        return self.training or self.running_mean is None

    def forward(  # type: ignore[override]  # called by recurrent layers only
        self,
        input: Tensor,
        mean: Tensor,
        variance: Tensor,
        bias: Tensor | None = None,
        *,
        activation: str | None = None,
    ) -> Tensor:
        """Return `input`, (N, C) or (N, C, steps), normalised in each step over N.

        `mean` and `variance`, (C,) or (steps, C), are what `of_steps` gave: in training those of
        the mini-batch, by which it normalises, replace them in place. A single sample has no
        variance and is normalised by what they are. `bias`, (C,), takes the place of β,
        and `activation` follows.
        """
        bias = self.bias if bias is None else bias
        by_batch = self.needs_batch and (len(input) > 1 or self.running_mean is None)
        share = 1.0 if by_batch else None  # of 1: nothing is left of what the statistics were
        if input.dim() == 2:
            both = (self.weight, bias), (mean, variance)
            return self._normalised(input, None, activation, *both, share)
        # Each channel of each step is a channel: (N, C, steps) -> (N, steps · C), one call for all.
        steps = input.shape[2]
        affine = self.weight.repeat(steps), None if bias is None else bias.repeat(steps)
        flat = input.transpose(1, 2).flatten(1)
        statistics = mean.view(-1), variance.view(-1)
        y = self._normalised(flat, None, activation, affine, statistics, share)
        return y.view(len(input), steps, self.num_features).transpose(1, 2)

    def track(self, mean: Tensor, variance: Tensor, first_step: int = 0) -> None:
        """Move the running statistics of steps from `first_step` on towards those, (steps, C).

        The variance is unbiased. Steps after `max_steps` are dropped. Does nothing where the layer
        does not track and where activation checkpointing runs the forward for the second time.
        """
        steps = max(0, min(len(mean), self.max_steps - first_step))
        if not steps or not self.tracks or is_recomputing():
            return
        with torch.no_grad():
            self._accept_steps(
                slice(first_step, first_step + steps), mean[:steps], variance[:steps]
            )

    def _accept_steps(self, steps: slice, mean: Tensor, variance: Tensor) -> None:
        """Take the mini-batch's statistics of these steps in if they are finite, and count it."""
        running_mean, running_var = self._running_statistics()
        old = torch.stack([running_mean[steps], running_var[steps]])  # (2, steps, C)
        taken = torch.stack([mean, variance]).to(old.dtype)
        new = old.lerp(taken, self._share_of_next_batches(steps))
        accepted: Tensor | bool = True
        if self.guard:
            accepted = new.isfinite().all()
            new = torch.where(accepted, new, old)
            self._count_non_finite(~accepted)
        running_mean[steps], running_var[steps] = new
        self.num_batches_tracked[steps] += accepted

    def _share_of_next_batches(self, steps: slice) -> Tensor | float:
        """Return the share that the next mini-batch gets in each step's running statistics."""
        if self.momentum is not None:
            return self.momentum
        batches = self.num_batches_tracked[steps, None] + 1  # sequences differ in length
        return batches.to(self.weight.dtype).reciprocal()


def _check_max_steps(max_steps: int) -> None:
    if not isinstance(max_steps, int) or isinstance(max_steps, bool):
        raise TypeError(f"`max_steps` is {max_steps!r}: pass an int, the longest sequence's length")
    if max_steps < 1:
        raise ValueError(
            f"`max_steps` is {max_steps}: pass at least 1, best the length of the longest sequence "
            f"that the layer trains on"
        )
