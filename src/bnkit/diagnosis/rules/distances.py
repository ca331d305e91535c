"""How far two distributions of a layer's input are apart, and how far they are by chance.

Both are shares of the layer's output: per channel in standard deviations, over channels by the
squares of gamma, so that channels that are switched off do not count.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.diagnosis.evidence import Seen
from bnkit.moments import Moments
from bnkit.surgery.verification import distance as distance_of_outputs


def distance(module: nn.Module | None, first: Moments, second: Moments) -> float:
    """Return the distance of two distributions, in standard deviations of the first.

    It is that of Wasserstein of order 2 between normal distributions of these moments,
    √((μ₁ − μ₂)² + (σ₁ − σ₂)²) / σ₁ (Olkin and Pukelsheim 1982), root mean square over channels.

    >>> spread, constant = torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1) * 2
    >>> round(distance(None, Moments.of(spread), Moments.of(constant)), 2)
    2.23
    """
    eps = _eps(module)
    variances = [moments.variance + eps for moments in (first, second)]
    means = (first.mean - second.mean).square()
    spreads = (variances[0].sqrt() - variances[1].sqrt()).square()
    return root_mean_square((means + spreads) / variances[0], module)


def by_chance(module: nn.Module | None, seen: Seen) -> float:
    """Return how far the statistics of one mini-batch are from the population's, by chance.

    The squared standard error of the mean of n rows is s² = v / n, with v the variance of their
    means, and that of the standard deviation of normal values is s² / 2; together 1.5 s² / σ².
    """
    rows = seen.of_rows.count / seen.batches
    if seen.of_rows.count < 2:
        return math.inf
    squared_error = seen.of_rows.unbiased_variance / rows
    return root_mean_square(1.5 * squared_error / (seen.moments.variance + _eps(module)), module)


def root_mean_square(squares: Tensor, module: nn.Module | None) -> float:
    """Return the root of the mean of these squares, (C,), weighted by the squares of gamma.

    >>> round(root_mean_square(torch.tensor([1.0, 9.0]), None) ** 2, 3)
    5.0
    """
    gamma = getattr(module, "weight", None)
    weight = torch.ones_like(squares) if gamma is None else gamma.detach().to(squares).square()
    total = weight.sum()
    if len(weight) != len(squares) or not total > 0:
        return squares.mean().sqrt().item()
    return ((weight * squares).sum() / total).sqrt().item()


def change_of_outputs(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the root mean square of the difference of a model's outputs, over that of `before`.

    It is infinite where they differ in number or in shape, or one only is NaN or infinite.

    >>> change_of_outputs([torch.tensor([4.0, 3.0])], [torch.tensor([4.0, 8.0])])
    1.0
    """
    if math.isinf(distance_of_outputs(before, after).error):
        return math.inf
    size = sum(_sum_of_squares(values) for values in before)
    moved = sum(
        _sum_of_squares(a - b) for a, b in zip(map(_wide, before), map(_wide, after), strict=True)
    )
    return math.sqrt(moved / size if size else moved)


def _wide(values: Tensor) -> Tensor:
    return values if values.is_complex() else values.double()


def _sum_of_squares(values: Tensor) -> float:
    finite = torch.where(values.isfinite(), values.abs().double(), 0.0)
    return finite.square().sum().item()


def _eps(module: Any) -> float:
    eps = getattr(module, "eps", 1e-5)
    return float(eps) if isinstance(eps, float | int) else 1e-5
