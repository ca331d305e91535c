"""The functions of the specification as torch operators, `torch.ops.bnkit`.

torch.compile traces them without a break. The kernel that a call names is imported then. Operators
return tensors only, so a gradient that is None elsewhere is an empty tensor here.
`kernels.autograd` gives them gradients.
"""

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from bnkit.kernels.call import SCHEMA, Call, flat

Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def run_forward(call: Call) -> Three:
    """Return y, and the mean and biased variance of each channel by which x was normalised."""
    kernel = module_of(call.kernel)
    y, mean, variance = kernel.batch_norm_forward(call.x, call.weight, call.bias, **call.ending)
    return y, mean, variance


def run_inference(call: Call) -> Tensor:
    """Return y for the mean and variance that are given for each channel."""
    y: Tensor = module_of(call.kernel).batch_norm_inference(*call[:5], **call.ending)
    return y


def run_backward(dy: Tensor, call: Call) -> Four:
    """Return dx, dweight, dbias and dresidual; the last is empty where it would be `dy` itself."""
    dx, dweight, dbias, dresidual = module_of(call.kernel).batch_norm_backward(
        dy, *call[:5], **call.ending, training=call.training
    )
    own = None if call.activation is None else dresidual
    return dx, *(_or_empty(gradient, call.x) for gradient in (dweight, dbias, own))


def module_of(kernel: str) -> Any:
    """Return the module with the functions of a kernel, imported when first asked for."""
    # Asked once for each call, so it is not looked up in sys.modules. Two threads that both find
    # nothing store the same module: an import runs once.
    if kernel not in _modules:
        _modules[kernel] = importlib.import_module(f"bnkit.kernels.{kernel}")
    return _modules[kernel]


_modules: dict[str, Any] = {}


def _or_empty(gradient: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if gradient is None else gradient


forward = custom_op(
    "bnkit::batch_norm_forward",
    flat(run_forward),
    mutates_args=(),
    schema=f"({SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
inference = custom_op(
    "bnkit::batch_norm_inference",
    flat(run_inference),
    mutates_args=(),
    schema=f"({SCHEMA}) -> Tensor",
)
backward = custom_op(
    "bnkit::batch_norm_backward",
    flat(run_backward),
    mutates_args=(),
    schema=f"(Tensor dy, {SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
)


# --- what they return, without the work: shapes, dtypes and strides, for compilers


@forward.register_fake
@flat
def _(call: Call) -> Three:
    # (C,) each, in the dtype of the arithmetic
    wide = torch.promote_types(call.x.dtype, torch.float32)
    mean, variance = (call.x.new_empty(call.x.shape[1], dtype=wide) for _ in range(2))
    return torch.empty_like(call.x), mean, variance


@inference.register_fake
@flat
def _(call: Call) -> Tensor:
    return torch.empty_like(call.x)


@backward.register_fake
@flat
def _(dy: Tensor, call: Call) -> Four:  # noqa: ARG001  its shape is that of x
    own = None if call.activation is None else call.residual
    like = (None if t is None else torch.empty_like(t) for t in (call.weight, call.bias, own))
    return torch.empty_like(call.x), *(_or_empty(t, call.x) for t in like)  # type: ignore[return-value]  # four
