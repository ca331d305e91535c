"""Which kernel serves a tensor, and why: by device, layout, dtype and size, from measurements.

`BNKIT_KERNEL` in the environment, read once at import, overrides the choice: "reference",
"torch", "cpu" or "gpu".
"""

import importlib.util
import os
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function_unary

from bnkit.internals import dispatch_modes, is_forward_mode, transformation

Kernel = Literal["reference", "torch", "cpu", "gpu"]

VARIABLE = "BNKIT_KERNEL"
# Values from which the kernels for the CPU beat torch, whose calls cost less, by what is asked:
# training, and fused with an activation or a residual. Alone and channels-last, torch is good.
WORTHWHILE = {
    (True, True): 2**19,
    (True, False): 2**22,
    (False, True): 2**20,
    (False, False): 2**22,
}
_DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "gpu": (torch.float32, torch.float16, torch.bfloat16),
}
_DEVICES = {"cpu": "cpu", "gpu": "cuda"}
_COMPILERS = {"cpu": "numba", "gpu": "triton"}
_INSTALLED = {name: importlib.util.find_spec(name) is not None for name in _COMPILERS.values()}
# Read once and never written again, so all threads see the same.
forced = os.environ.get(VARIABLE, "")


@dataclass(frozen=True)
class Choice:
    """A kernel and the reason for it; prints as a sentence."""

    kernel: Kernel
    reason: str

    def __str__(self) -> str:
        return f"{self.kernel}: {self.reason}"


_FORCED = {name: Choice(name, f"{VARIABLE} says so") for name in get_args(Kernel)}
_SMALL = Choice("torch", "too few values: the call overhead would exceed the work")
_CPU = Choice("cpu", "a large tensor on the CPU")
_LOOKED_ON = Choice(
    "torch", "a tensor subclass or a torch function mode needs to intercept every operation"
)
_FORWARD_MODE = Choice("torch", "forward-mode differentiation is on, whose rules only torch has")
_GPU = Choice("torch", f"the kernels for GPUs have not been measured; {VARIABLE}=gpu selects them")
_DEVICE = Choice("torch", "there are no kernels for this device")
_DTYPE = Choice("torch", "there are no kernels for this dtype")
_LAYOUT = Choice("torch", "its memory is neither channels first nor channels last, without gaps")
_SHAPE = Choice("torch", "it has no channel axis")
_NO_NUMBA = Choice("torch", "numba, which compiles the kernels for the CPU, is not installed")


def choose_kernel(x: Tensor, *, training: bool = True, fused: bool = True) -> Choice:
    """Return the kernel that normalises `x`, and why.

    `training` says that the statistics are those of the mini-batch, `fused` that an activation or
    a residual is part of the call.

    Raises ValueError if `BNKIT_KERNEL` names no kernel, or one that cannot serve `x`.

    >>> print(choose_kernel(torch.empty(60, 100)))
    torch: too few values: the call overhead would exceed the work
    >>> choose_kernel(torch.empty(32, 64, 56, 56)).kernel
    'cpu'
    """
    if forced and x.numel():
        return _forced(forced, x)
    # The most frequent answer first: on small tensors the choice itself is measurable.
    if x.numel() < WORTHWHILE[training, fused]:
        return _SMALL
    return _objection(x) or _CPU


def _objection(x: Tensor) -> Choice | None:
    """Return torch and the reason why a large `x` is left to it, or None."""
    objections = (
        (x.device.type == "cuda", _GPU),
        (x.device.type != "cpu", _DEVICE),
        (x.dtype not in _DTYPES["cpu"], _DTYPE),
        (x.dim() < 2, _SHAPE),
        (has_torch_function_unary(x), _LOOKED_ON),
        (not _INSTALLED["numba"], _NO_NUMBA),
    )
    first = next((choice for true, choice in objections if true), None)
    # Asked last, because both are slow to answer, and of a subclass the strides may mean nothing.
    if first is None and not is_dense(x):
        return _LAYOUT
    return _FORWARD_MODE if first is None and _in_forward_mode() else first


def is_dense(x: Tensor) -> bool:
    """Return whether the memory of `x` is channels-first or channels-last, without gaps."""
    return x.is_contiguous() or x.movedim(1, -1).is_contiguous()


def is_traced(x: Tensor) -> bool:
    """Return whether a compiler records this call, for which the kernels must be operators."""
    return (
        torch.compiler.is_compiling()
        # FakeTensor, FunctionalTensor and their like are subclasses; a parameter is plain memory.
        or type(x) not in (Tensor, nn.Parameter)
        or dispatch_modes() > 0
    )


def is_transformed() -> bool:
    """Return whether this runs inside a transformation of torch.func."""
    return transformation() is not None


def _forced(name: str, x: Tensor) -> Choice:
    if name not in _FORCED:
        raise ValueError(f"{VARIABLE} is {name!r}: set it to one of {', '.join(_FORCED)}")
    if name in _DEVICES and (
        x.device.type != _DEVICES[name]
        or x.dtype not in _DTYPES[name]
        or not _INSTALLED[_COMPILERS[name]]
    ):
        raise ValueError(
            f"{VARIABLE} is {name!r}, which cannot serve `input` ({x.dtype} on {x.device}): it "
            f"takes {', '.join(map(str, _DTYPES[name]))} on {_DEVICES[name]} and needs "
            f"{_COMPILERS[name]}; unset {VARIABLE}"
        )
    return _FORCED[name]


def _in_forward_mode() -> bool:
    # Any tensor of the call may have a tangent, so ask whether there are any at all.
    return not torch.compiler.is_compiling() and is_forward_mode()
