"""Which kernel serves a tensor, and why: by device, layout and dtype.

`BNKIT_KERNEL` in the environment, read once at import, overrides the choice: "reference",
"torch", "core" or "gpu".
"""

import importlib.util
import os
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function_unary

from bnkit.internals import dispatch_modes, is_forward_mode, is_jit_tracing, transformation
from bnkit.kernels import build

Kernel = Literal["reference", "torch", "core", "gpu"]

VARIABLE = "BNKIT_KERNEL"
_DTYPES = {
    "core": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "gpu": (torch.float32, torch.float16, torch.bfloat16),
}
_DEVICES = {"core": "cpu", "gpu": "cuda"}
_TRITON = importlib.util.find_spec("triton") is not None
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
_CORE = Choice("core", "a dense tensor on the CPU")
_LOOKED_ON = Choice(
    "torch", "a tensor subclass or a torch function mode needs to intercept every operation"
)
_FORWARD_MODE = Choice("torch", "forward-mode differentiation is on, whose rules only torch has")
_GPU = Choice("torch", f"the kernels for GPUs have not been measured; {VARIABLE}=gpu selects them")
_DEVICE = Choice("torch", "there are no kernels for this device")
_DTYPE = Choice("torch", "there are no kernels for this dtype")
_LAYOUT = Choice("torch", "its memory is neither channels first nor channels last, without gaps")
_SHAPE = Choice("torch", "it has no channel axis")
_EMPTY = Choice("torch", "it is empty")
_JIT = Choice("torch", "torch.jit.trace records this call, and what it records runs without bnkit")


def choose_kernel(x: Tensor, *, training: bool = True, fused: bool = True) -> Choice:  # noqa: ARG001  as it was
    """Return the kernel that normalises `x`, and why.

    On the CPU it is the compiled core, which is built then where it is not yet. `training` and
    `fused` are of no account any more.

    Raises ValueError if `BNKIT_KERNEL` names no kernel, or one that cannot serve `x`.

    >>> print(choose_kernel(torch.empty(60, 100)[:, ::2]))
    torch: its memory is neither channels first nor channels last, without gaps
    """
    if forced and x.numel():
        return _forced(forced, x)
    return _objection(x) or _CORE


def _objection(x: Tensor) -> Choice | None:
    """Return torch and the reason why `x` is left to it, or None."""
    if is_jit_tracing():  # the sizes of `x` are tensors there
        return _JIT
    objections = (
        (x.device.type == "cuda", _GPU),
        (x.device.type != "cpu", _DEVICE),
        (x.dtype not in _DTYPES["core"], _DTYPE),
        (x.dim() < 2, _SHAPE),
        (x.numel() == 0, _EMPTY),
        (has_torch_function_unary(x), _LOOKED_ON),
    )
    first = None
    for true, choice in objections:  # a generator would break the graph of torch.compile before 2.9
        if true and first is None:
            first = choice
    # Asked last, because both are slow to answer, and of a subclass the strides may mean nothing.
    if first is None and not is_dense(x):
        return _LAYOUT
    if first is None and _in_forward_mode():
        return _FORWARD_MODE
    return first or missing_core()


def missing_core() -> Choice | None:
    """Return torch and the reason why there is no core, or None once it is loaded."""
    global _missing  # noqa: PLW0603  asked in every call, so it is looked up once
    if _missing == ():
        if torch.compiler.is_compiling():  # no compiler may look into this, nor wait for it
            return Choice("torch", "the compiled core was not loaded before the model was compiled")
        core = build.load()
        _missing = Choice("torch", core.reason) if core.path is None else None
    return _missing  # type: ignore[return-value]  # no longer ()


_missing: Choice | tuple[()] | None = ()


def is_whole(x: Tensor) -> bool:
    """Return whether the core may do all of a batch norm of `x` in one call, gradients included.

    Where a compiler, a transformation, a mode or a class of its own looks on, it may not.
    """
    return (
        forced in {"", "core"}
        and not is_traced(x)
        and not has_torch_function_unary(x)
        and not is_transformed()
        and not is_forward_mode()
        and missing_core() is None
    )


def is_dense(x: Tensor) -> bool:
    """Return whether the memory of `x` is channels-first or channels-last, without gaps."""
    return x.is_contiguous() or x.movedim(1, -1).is_contiguous()


def is_traced(x: Tensor) -> bool:
    """Return whether a compiler records this call, for which the kernels must be operators."""
    return (
        torch.compiler.is_compiling()
        or is_jit_tracing()
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
        or (name == "gpu" and not _TRITON)
    ):
        needs = " and needs triton" if name == "gpu" else ""
        raise ValueError(
            f"{VARIABLE} is {name!r}, which cannot serve `input` ({x.dtype} on {x.device}): it "
            f"takes {', '.join(map(str, _DTYPES[name]))} on {_DEVICES[name]}{needs}; unset "
            f"{VARIABLE}"
        )
    missing = missing_core() if name == "core" else None
    if missing:
        raise ValueError(f"{VARIABLE} is {name!r}: {missing.reason}")
    return _FORCED[name]


def _in_forward_mode() -> bool:
    # Any tensor of the call may have a tangent, so ask whether there are any at all.
    return not torch.compiler.is_compiling() and is_forward_mode()
