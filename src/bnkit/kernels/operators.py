"""The functions of the specification as torch operators, `torch.ops.bnkit`.

torch.compile traces them without a break. Each takes the name of the kernel that does the work,
which is imported then. Operators return tensors only, so a gradient that is None elsewhere is an
empty tensor here. `kernels.autograd` gives them gradients.
"""

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def run_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str | None,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and the mean and biased variance of each channel by which x was normalised."""
    options = {"eps": eps, "activation": activation, "residual": residual}
    y, mean, variance = module_of(kernel).batch_norm_forward(x, weight, bias, **options)
    return y, mean, variance


def run_inference(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str | None,
    kernel: str,
) -> Tensor:
    """Return y for a given mean and variance of each channel."""
    options = {"eps": eps, "activation": activation, "residual": residual}
    y: Tensor = module_of(kernel).batch_norm_inference(x, mean, variance, weight, bias, **options)
    return y


def run_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str | None,
    training: bool,
    kernel: str,
) -> Four:
    """Return dx, dweight, dbias and dresidual; the last is empty where it would be `dy` itself."""
    module = module_of(kernel)
    function = module.batch_norm_backward if training else module.batch_norm_inference_backward
    options = {"eps": eps, "activation": activation, "residual": residual}
    dx, dweight, dbias, dresidual = function(dy, x, mean, variance, weight, bias, **options)
    own = None if activation is None else dresidual
    return dx, _or_empty(dweight, x), _or_empty(dbias, x), _or_empty(own, x)


def module_of(kernel: str) -> Any:
    """Return the module with the functions of a kernel, imported when first asked for."""
    if kernel not in _modules:
        _modules[kernel] = importlib.import_module(f"bnkit.kernels.{kernel}")
    return _modules[kernel]


_modules: dict[str, Any] = {}


def _or_empty(gradient: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if gradient is None else gradient


forward = custom_op("bnkit::batch_norm_forward", run_forward, mutates_args=())
inference = custom_op("bnkit::batch_norm_inference", run_inference, mutates_args=())
backward = custom_op("bnkit::batch_norm_backward", run_backward, mutates_args=())


# --- what they return, without the work


@forward.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = (x.new_empty(x.shape[1], dtype=_wide_dtype(x)) for _ in range(2))
    return torch.empty_like(x), mean, variance


@inference.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@backward.register_fake
def _(*arguments: Any) -> Four:
    _, x, _, _, weight, bias, residual, _, activation, *_ = arguments
    of_residual = None if residual is None or activation is None else torch.empty_like(x)
    dweight, dbias = (None if t is None else torch.empty_like(t) for t in (weight, bias))
    rest = (_or_empty(gradient, x) for gradient in (dweight, dbias, of_residual))
    return torch.empty_like(x), *rest  # type: ignore[return-value]


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
