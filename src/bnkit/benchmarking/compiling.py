"""torch.compile as it is measured: known to work, and begun anew for each case."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def compiled_copy(layers: nn.Module) -> nn.Module:
    """Return a copy of `layers` compiled as one graph, and forget all that was compiled before.

    Otherwise torch runs the ninth shape uncompiled, with a warning only. The `compile` method of
    torch's own containers compiles nothing at all.
    """
    torch.compiler.reset()
    compiled: Any = torch.compile(copy.deepcopy(layers), fullgraph=True, dynamic=False)
    return compiled  # type: ignore[no-any-return]


def refuse_without_compiler() -> None:
    """Compile a small function by torch.compile; ValueError, with the cause, where that fails."""

    def double(x: Tensor) -> Tensor:
        return x + x

    try:
        torch.compile(double)(torch.ones(8))
    except Exception as error:  # of many types, around the cause
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"`compiled` was asked for, and torch.compile fails on this machine "
            f"({type(cause).__name__}: {reason}): install a C++ compiler, or do without `compiled`"
        ) from error
