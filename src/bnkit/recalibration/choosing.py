"""Which batch norms are measured, and why others are left alone."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.layers.masked import MaskedBatchNorm
from bnkit.roles import is_batch_norm

Where = Callable[[str, nn.Module], bool]

_SHOWN = 8  # layers in a message


@dataclass(frozen=True)
class Chosen:
    """The paths of the layers to measure, and the reasons for the others by their paths."""

    paths: tuple[str, ...]
    left_alone: dict[str, str]


def choose(model: nn.Module, where: Where | None) -> Chosen:
    """Return which batch norms of `model` are measured; ValueError where none is.

    >>> frozen = nn.BatchNorm1d(2, momentum=0.0)
    >>> choose(nn.Sequential(nn.BatchNorm1d(2), frozen), None)
    Chosen(paths=('0',), left_alone={'1': 'frozen: its momentum is 0'})
    """
    objections = {
        path: _objection(model, path, layer, where)
        for path, layer in model.named_modules()
        if _counts_as_batch_norm(layer)
    }
    paths = tuple(path for path, objection in objections.items() if objection is None)
    left_alone = {path: why for path, why in objections.items() if why is not None}
    if not paths:
        raise ValueError(f"there is nothing to measure: {_why_none(model, left_alone)}")
    return Chosen(paths, left_alone)


def _counts_as_batch_norm(layer: nn.Module) -> bool:
    foreign = is_batch_norm(layer) and next(layer.children(), None) is None
    return isinstance(layer, _BatchNorm) or foreign


def _objection(model: nn.Module, path: str, layer: nn.Module, where: Where | None) -> str | None:
    if where is not None and not where(path, layer):
        return "`where` did not choose it"
    if not isinstance(layer, _BatchNorm):
        return f"{type(layer).__name__} is of another library: what its buffers mean is unknown"
    if layer.running_mean is None or layer.running_var is None:
        return "it has no running statistics: in eval mode too it takes those of the mini-batch"
    if layer.running_mean.dim() != 1:
        return "it has statistics for each time step of a recurrent layer"
    if isinstance(layer, MaskedBatchNorm):
        return "it is masked: what it leaves out of its input cannot be seen from outside"
    return _why_frozen(model, layer)


def _why_frozen(model: nn.Module, layer: _BatchNorm) -> str | None:
    if isinstance(layer, FrozenBatchNorm):
        return f"frozen: it is a {type(layer).__name__}"
    if layer.momentum == 0:
        return "frozen: its momentum is 0"
    if not layer.track_running_stats:
        return "frozen: its track_running_stats is False"
    if model.training and not layer.training:
        return "frozen: it is in eval mode inside of a model in training mode"
    return None


def _why_none(model: nn.Module, left_alone: dict[str, str]) -> str:
    if not left_alone:
        return f"{type(model).__name__} has no batch norm"
    reasons = [f"{path or 'the model'}: {why}" for path, why in left_alone.items()]
    more = len(reasons) - _SHOWN
    rest = f"; and {more} more" if more > 0 else ""
    return f"{'; '.join(reasons[:_SHOWN])}{rest}"
