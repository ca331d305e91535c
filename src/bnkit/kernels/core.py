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


def batch_norm_forward(*terms: Tensor | None, **ending: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `reference.batch_norm_forward` returns; see there.

    Raises TypeError for a dtype other than float32, float64, bfloat16 and float16.

    >>> y, mean, variance = batch_norm_forward(torch.tensor([[1.0], [3.0]]), None, None, eps=0.0)
    >>> y.flatten(), mean, variance
    (tensor([-1.,  1.]), tensor([2.]), tensor([1.]))
    """
    y, mean, variance = _run(_operators.core_forward, *terms, **ending)
    return y, mean, variance


def batch_norm_inference(*terms: Tensor | None, **ending: Any) -> Tensor:
    """Return what `reference.batch_norm_inference` returns; see there."""
    y: Tensor = _run(_operators.core_inference, *terms, **ending)
    return y


def batch_norm_backward(*terms: Tensor | None, training: bool = True, **ending: Any) -> Gradients:
    """Return what `reference.batch_norm_backward` returns; see there."""
    gradients: Gradients = _run(_operators.core_backward, *terms, training=training, **ending)
    return gradients


def _run(
    operator: Any,
    *terms: Tensor | None,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    **options: bool,
) -> Any:
    return operator(*terms, residual, eps, CODES[activation], **options)
