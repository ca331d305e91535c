"""The gradients of the gradients: the specification differentiated twice, by torch itself."""

from collections.abc import Sequence
from itertools import compress

import torch
import torch.nn.functional as F
from torch import Tensor

from bnkit.kernels.activations import find_activation
from bnkit.kernels.call import Call


def gradients_of_backward(
    cotangents: Sequence[Tensor | None], dy: Tensor, call: Call
) -> list[Tensor | None]:
    """Return the gradients of dy and of the terms, given those of `batch_norm_backward`'s results.

    The terms are x, weight, bias and residual. The statistics of an inference pass are constants;
    those of a training pass are not looked at, because they are a function of x.
    """
    terms = call.x, call.weight, call.bias, call.residual
    present = [term is not None for term in terms]
    pairs = [(g, t) for g, t in zip(cotangents, terms, strict=True) if t is not None]
    # A result that is empty by convention has no cotangent of the term's shape. No zeros stand in:
    # torch would add to them in place, which vmap refuses where only others are batched.
    asked = [g is not None and g.shape == t.shape for g, t in pairs]
    if not any(asked):
        return [None] * (1 + len(terms))

    def y(*values: Tensor) -> Tensor:
        x, *others = values  # of the terms that there are; x always is
        weight, bias, residual = _spread(others, present[1:])
        return _specification(call._replace(x=x, weight=weight, bias=bias, residual=residual))

    def gradients(dy: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(compress(torch.func.vjp(y, *values)[1](dy), asked))

    # Double backward is the pullback of the backward: vjp of (dy, terms) -> gradients of the terms.
    pull = torch.func.vjp(gradients, dy, *(t for _, t in pairs))[1]
    d_dy, *found = pull(tuple(compress((g for g, _ in pairs), asked)))
    return [d_dy, *_spread(found, present)]


def _spread(values: Sequence[Tensor], present: Sequence[bool]) -> list[Tensor | None]:
    """Return the values where there is a term, None for the others."""
    rest = iter(values)
    return [next(rest) if here else None for here in present]


def _specification(call: Call) -> Tensor:
    x, mean, variance, weight, bias, residual, eps, activation, training, _ = call
    if training:
        mean = variance = None
    if weight is None and bias is not None:  # torch cannot differentiate that twice
        weight = torch.ones_like(bias)
    z = F.batch_norm(x, mean, variance, weight, bias, training, 0.0, eps)
    return find_activation(activation).function(z if residual is None else z + residual)
