"""The four functions of the specification, computed by the kernels of this package.

What they return is fresh memory that numbers were written into, so no gradients are recorded.
"""

import torch
from torch import Tensor

from bnkit.kernels.call import Call
from bnkit.kernels.cpu.execution import execute, wide_dtype
from bnkit.kernels.cpu.layouts import Layout
from bnkit.kernels.memory import empty_like
from bnkit.kernels.reference import Gradients


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

    Raises TypeError for a dtype other than float32, float64 and bfloat16.

    >>> y, mean, variance = batch_norm_forward(torch.tensor([[1.0], [3.0]]), None, None, eps=0.0)
    >>> y.flatten(), mean, variance
    (tensor([-1.,  1.]), tensor([2.]), tensor([1.]))
    """
    mean, variance = (torch.empty(x.shape[1], dtype=wide_dtype(x)) for _ in range(2))
    call = Call(x, mean, variance, weight, bias, residual, eps, activation, True, "cpu")
    return _forward(call), mean, variance


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
    return _forward(Call(x, mean, variance, weight, bias, residual, eps, activation, False, "cpu"))


def batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Gradients:
    """Return what `reference.batch_norm_backward` returns; see there."""
    return _backward(
        dy, Call(x, mean, variance, weight, bias, residual, eps, activation, True, "cpu")
    )


def batch_norm_inference_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Gradients:
    """Return what `reference.batch_norm_inference_backward` returns; see there."""
    return _backward(
        dy, Call(x, mean, variance, weight, bias, residual, eps, activation, False, "cpu")
    )


def _forward(call: Call) -> Tensor:
    x, mean, variance, weight, bias, residual, eps, activation, training, _ = call
    layout = Layout.of(x)
    x = layout.arrange(x)
    y = empty_like(x)
    tensors = {
        "x": x,
        "y": y,
        "residual": None if residual is None else layout.arrange(residual),
        "mean": _wide(mean, x),
        "variance": _wide(variance, x),
        "weight": _wide(weight, x),
        "bias": _wide(bias, x),
    }
    execute("forward", layout, tensors, activation=activation, eps=eps, training=training)
    return y


def _backward(dy: Tensor, call: Call) -> Gradients:
    x, mean, variance, weight, bias, residual, eps, activation, training, _ = call
    layout = Layout.of(x)
    x = layout.arrange(x)
    dx = empty_like(x)
    # Without an activation the gradient of the sum is that of each term.
    dresidual = None if residual is None else dy
    if residual is not None and activation is not None:
        residual, dresidual = layout.arrange(residual), empty_like(x)
    dweight, dbias = (
        None if p is None else torch.empty(x.shape[1], dtype=wide_dtype(x)) for p in (weight, bias)
    )
    tensors = {
        "x": x,
        "dy": layout.arrange(dy),
        "dx": dx,
        "residual": None if activation is None else residual,
        "dresidual": None if activation is None else dresidual,
        "mean": _wide(mean, x),
        "variance": _wide(variance, x),
        "weight": _wide(weight, x),
        "bias": _wide(bias, x),
        "dweight": dweight,
        "dbias": dbias,
    }
    execute("backward", layout, tensors, activation=activation, eps=eps, training=training)
    return (
        dx,
        None if weight is None or dweight is None else dweight.to(weight.dtype),
        None if bias is None or dbias is None else dbias.to(bias.dtype),
        dresidual,
    )


def _wide(values: Tensor | None, x: Tensor) -> Tensor | None:
    """`values` of each channel, in the dtype of the arithmetic on `x`."""
    if values is None or (values.dtype == wide_dtype(x) and values.is_contiguous()):
        return values
    return values.to(wide_dtype(x)).contiguous()
