"""The gradients of the gradients: the specification differentiated twice, by torch itself."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bnkit.kernels.activations import find_activation
from bnkit.kernels.call import Call


def gradients_of_backward(
    cotangents: Sequence[Tensor], dy: Tensor, call: Call
) -> list[Tensor | None]:
    """Return the gradients of dy and of the terms, given those of `batch_norm_backward`'s results.

    The terms are x, weight, bias and residual. The statistics of an inference pass are constants;
    those of a training pass are not looked at, because they are a function of x.
    """
    terms = call.x, call.weight, call.bias, call.residual
    present = [term is not None for term in terms]

    def y(*values: Tensor) -> Tensor:
        x, *others = values  # of the terms that there are; x always is
        weight, bias, residual = _spread(others, present[1:])
        return _specification(call._replace(x=x, weight=weight, bias=bias, residual=residual))

    def gradients(dy: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(y, *values)[1](dy)  # type: ignore[no-any-return]

    # Double backward is the pullback of the backward: vjp of (dy, terms) -> gradients of the terms.
    pull = torch.func.vjp(gradients, dy, *(t for t in terms if t is not None))[1]
    pairs = zip(cotangents, terms, strict=True)
    # A result that is empty by convention has no cotangent of the term's shape.
    wanted = [g if g.shape == t.shape else torch.zeros_like(t) for g, t in pairs if t is not None]
    d_dy, *found = pull(tuple(wanted))
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
