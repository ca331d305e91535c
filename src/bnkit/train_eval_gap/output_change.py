"""How far the output of a batch norm moves when it normalises by other statistics."""

import math

from torch import Tensor

Statistics = tuple[Tensor, Tensor]  # mean and variance, (C,) each


def relative_change(
    batch: Statistics,
    running: Statistics,
    *,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> float:
    """Return the root mean square of the change of the output, over that of the output itself.

    With batch mean μ and variance v of a channel, running mean m and variance r, weight γ and bias
    β, all (C,), it is √(Σ γ²((√(v/(r+ε)) − √(v/(v+ε)))² + (μ−m)²/(r+ε)) / Σ (γ²v/(v+ε) + β²)): the
    output by the running statistics against that by those of the batch, before any activation.

    >>> import torch
    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> relative_change((3 * one, one), (zero, one), eps=0.0)
    3.0
    """
    (mean, variance), (running_mean, running_var) = batch, running
    by_running, by_batch = running_var + eps, variance + eps
    scales = (variance / by_running).sqrt() - (variance / by_batch).sqrt()
    moved = scales.square() + (mean - running_mean).square() / by_running
    size = _size(variance / by_batch, weight, bias)
    return root_of_ratio(_scaled(moved, weight).sum().item(), size)


def relative_chance(
    variance: Tensor,
    squared_error: Tensor,
    *,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> float:
    """Return how far chance moves the output where the mean has this squared standard error s².

    The scale has half as much of it again, for normal values: 1.5 s²/(v+ε) in place of what moved.

    >>> import torch
    >>> relative_chance(torch.ones(1), torch.full((1,), 1.5), eps=0.0)
    1.5
    """
    by_batch = variance + eps
    moved = _scaled(1.5 * squared_error / by_batch, weight).nan_to_num(math.inf, math.inf)
    return root_of_ratio(moved.sum().item(), _size(variance / by_batch, weight, bias))


def _scaled(squares: Tensor, weight: Tensor | None) -> Tensor:
    return squares if weight is None else weight.detach().to(squares).square() * squares


def _size(squares: Tensor, weight: Tensor | None, bias: Tensor | None) -> float:
    """Return the sum of the squared outputs over the channels, of normalised values and β."""
    offset = 0.0 if bias is None else bias.detach().to(squares).square().sum().item()
    return _scaled(squares, weight).sum().item() + offset


def root_of_ratio(part: float, whole: float) -> float:
    """Return √(part / whole): 0 where both are, infinite for a part of nothing.

    >>> root_of_ratio(4.0, 1.0), root_of_ratio(0.0, 0.0), root_of_ratio(1.0, 0.0)
    (2.0, 0.0, inf)
    """
    if whole > 0:
        return math.sqrt(part / whole)
    return math.inf if part else 0.0
