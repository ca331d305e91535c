"""Rules for torch.vmap: several models are one model with all their channels side by side.

A batched x of (N, C, ...) becomes (N, models · C, ...), a batched weight of (C,) (models · C,).
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from bnkit.kernels.call import Call

Dims = Sequence[int | None]  # the batch axis of each value, None for what all models share
_WITH_SAMPLES = ("x", "residual")  # (N, C, ...); the other tensors are (C,)


def forward(apply: Callable[..., Any], models: int, dims: Dims, call: Call) -> Any:
    """Return the results of `operators.run_forward` for all models, and their batch axes."""
    y, mean, variance = apply(*_folded(call, dims, models))
    return (_maps(y, models), _rows(mean, models), _rows(variance, models)), (1, 0, 0)


def inference(apply: Callable[..., Any], models: int, dims: Dims, call: Call) -> Any:
    """Return the result of `operators.run_inference` for all models, and its batch axis."""
    return _maps(apply(*_folded(call, dims, models)), models), 1


def backward(
    apply: Callable[..., Any],
    models: int,
    dims: Dims,
    dy: Tensor,
    call: Call,
) -> Any:
    """Return the results of `operators.run_backward` for all models, and their batch axes."""
    dy = _fold(dy, dims[0], models, 1)
    dx, dweight, dbias, dresidual = apply(dy, *_folded(call, dims[1:], models))
    outputs = _maps(dx, models), _rows(dweight, models), _rows(dbias, models)
    # Gradients that are empty by convention belong to no model, so they have no batch axis.
    axes = (1, *(0 if t.numel() else None for t in (dweight, dbias)))
    if not dresidual.numel():
        return (*outputs, dresidual), (*axes, None)
    return (*outputs, _maps(dresidual, models)), (*axes, 1)


def _folded(call: Call, dims: Dims, models: int) -> list[Any]:
    """Return the values of the call with the models in the channels."""
    return [
        _fold(value, dim, models, 1 if name in _WITH_SAMPLES else 0)
        if isinstance(value, Tensor)
        else value
        for name, value, dim in zip(Call._fields, call, dims, strict=True)
    ]


def _fold(t: Tensor, dim: int | None, models: int, axis: int) -> Tensor:
    """Return `t`, one for all models where `dim` is None, with the models before the channels."""
    # (…, models, …) -> models before the channels: (N, models · C, …), or (models · C,)
    if dim is None:
        t, dim = t.unsqueeze(axis), axis
        t = t.expand(*t.shape[:axis], models, *t.shape[axis + 1 :])
    return t.movedim(dim, axis).flatten(axis, axis + 1)


def _maps(t: Tensor, models: int) -> Tensor:
    return t.reshape(len(t), models, -1, *t.shape[2:])


def _rows(t: Tensor, models: int) -> Tensor:
    return t.reshape(models, -1) if t.numel() else t
