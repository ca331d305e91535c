"""Rules for torch.vmap: several models are one model with all their channels side by side.

A batched x of (N, C, ...) becomes (N, models · C, ...), a batched weight of (C,) (models · C,).
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Dims = Sequence[int | None]


def forward(apply: Callable[..., Any], models: int, dims: Dims, arguments: Sequence[Any]) -> Any:
    """Return the results of `operators.run_forward` for all models, and their batch axes."""
    x, weight, bias, residual, *options = _folded(arguments, dims, models, wide={0, 3})
    y, mean, variance = apply(x, weight, bias, residual, *options)
    return (_maps(y, models), _rows(mean, models), _rows(variance, models)), (1, 0, 0)


def inference(apply: Callable[..., Any], models: int, dims: Dims, arguments: Sequence[Any]) -> Any:
    """Return the result of `operators.run_inference` for all models, and its batch axis."""
    return _maps(apply(*_folded(arguments, dims, models, wide={0, 5})), models), 1


def backward(apply: Callable[..., Any], models: int, dims: Dims, arguments: Sequence[Any]) -> Any:
    """Return the results of `operators.run_backward` for all models, and their batch axes."""
    results = apply(*_folded(arguments, dims, models, wide={0, 1, 6}))
    dx, dweight, dbias, dresidual = results
    outputs = _maps(dx, models), _rows(dweight, models), _rows(dbias, models)
    axes = (1, *(0 if t.numel() else None for t in (dweight, dbias)))
    if not dresidual.numel():
        return (*outputs, dresidual), (*axes, None)
    return (*outputs, _maps(dresidual, models)), (*axes, 1)


def _folded(arguments: Sequence[Any], dims: Dims, models: int, *, wide: set[int]) -> list[Any]:
    """Return the arguments with the models in the channels; those at `wide` have an axis before."""
    return [
        _fold(argument, dim, models, 1 if index in wide else 0)
        if isinstance(argument, Tensor)
        else argument
        for index, (argument, dim) in enumerate(zip(arguments, dims, strict=True))
    ]


def _fold(t: Tensor, dim: int | None, models: int, axis: int) -> Tensor:
    """Return `t`, one for all models where `dim` is None, with the models before the channels."""
    if dim is None:
        t, dim = t.unsqueeze(axis), axis
        t = t.expand(*t.shape[:axis], models, *t.shape[axis + 1 :])
    return t.movedim(dim, axis).flatten(axis, axis + 1)


def _maps(t: Tensor, models: int) -> Tensor:
    return t.reshape(len(t), models, -1, *t.shape[2:])


def _rows(t: Tensor, models: int) -> Tensor:
    return t.reshape(models, -1) if t.numel() else t
