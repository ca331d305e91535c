"""The compiled core as a kernel module: the four functions of the specification, in C++.

`by_batch` and `by_statistics` are batch norm whole for plain programs, in one call: gradients,
running averages and guard included. They return None for what is not theirs, and change nothing.
"""

from typing import Any

import torch
from torch import Tensor

from bnkit.kernels.activations import CODES
from bnkit.kernels.build import BuildError, load
from bnkit.kernels.reference import Gradients

_core = load()
if _core.path is None:
    raise BuildError(_core.reason)
_operators = torch.ops.bnkit
by_batch: Any = _operators.train.default
by_statistics: Any = _operators.infer.default


def batch_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `reference.batch_norm_forward` returns; see there.

    Raises TypeError for a dtype other than float32, float64, bfloat16 and float16.

    >>> y, mean, variance = batch_norm_forward(torch.tensor([[1.0], [3.0]]), None, None, eps=0.0)
    >>> y.flatten(), mean, variance
    (tensor([-1.,  1.]), tensor([2.]), tensor([1.]))
    """
    y, mean, variance = _operators.core_forward(x, weight, bias, residual, eps, CODES[activation])
    return y, mean, variance


def batch_norm_inference(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Return what `reference.batch_norm_inference` returns; see there."""
    y: Tensor = _operators.core_inference(
        x, mean, variance, weight, bias, residual, eps, CODES[activation]
    )
    return y


def batch_norm_backward(dy: Tensor, *terms: Tensor | None, **ending: Any) -> Gradients:
    """Return what `reference.batch_norm_backward` returns; see there."""
    return _backward(dy, *terms, **ending, training=True)


def batch_norm_inference_backward(dy: Tensor, *terms: Tensor | None, **ending: Any) -> Gradients:
    """Return what `reference.batch_norm_inference_backward` returns; see there."""
    return _backward(dy, *terms, **ending, training=False)


def _backward(
    dy: Tensor,
    *terms: Tensor | None,  # x, mean, variance, weight and bias
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    training: bool,
) -> Gradients:
    gradients: Gradients = _operators.core_backward(
        dy, *terms, residual, eps, CODES[activation], training
    )
    return gradients
