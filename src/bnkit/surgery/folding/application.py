"""What a fold does to a model: the layer's new weight and bias, and a batch norm less."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnkit.layers.affine import ResidualActivation, activation_module
from bnkit.layers.batch_norm import ActivatedBatchNorm
from bnkit.surgery.folding.arithmetic import (
    affine_of,
    after_layer,
    before_layer,
    features_out,
)
from bnkit.surgery.folding.targets import original_class
from bnkit.surgery.normalized import Normalized
from bnkit.surgery.plan import replace_module

Side = Literal["before", "after"]  # where the layer is that takes the batch norm in


def fold_into(
    model: nn.Module, path: str, *, target: str, side: Side, features: Tensor, residual: bool
) -> None:
    """Fold the batch norm at `path` of `model` into the layer at `target`, in place.

    Feature i of the layer, of its output where it stands before the batch norm and else of its
    input, is channel `features[i]` of the batch norm (−1: none).
    """
    batch_norm, layer = model.get_submodule(path), model.get_submodule(target)
    values = folded(batch_norm, layer, side=side, features=features)
    put_into(model, path, target=target, values=values, residual=residual)


def put_into(
    model: nn.Module, path: str, *, target: str, values: tuple[Tensor, Tensor], residual: bool
) -> None:
    """Take the batch norm at `path` out of `model`, in place, by these weight and bias."""
    layer = model.get_submodule(target)
    fold_away(model, path, target=target, residual=residual)
    with torch.no_grad():
        for parameter, value in zip((layer.weight, layer.bias), values, strict=True):
            parameter.copy_(value)  # type: ignore[operator]


def folded(
    batch_norm: nn.Module, layer: Any, *, side: Side, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of `layer` with `batch_norm` folded in, in the dtype of its weight."""
    affine = affine_of(batch_norm).take(features, like=layer.weight)
    weight, bias = (after_layer if side == "before" else before_layer)(layer, affine)
    return weight, bias.to(weight.dtype)


def fold_away(
    model: nn.Module, layer_path: str, *, target: str | None = None, residual: bool = False
) -> None:
    """Take the batch norm at `layer_path` out of `model`, in place, whatever its values.

    The layer at `target` gets a bias if it has none, which trains if its weight or the batch norm's
    bias does. What remains of the batch norm is its activation and, with `residual`, the sum before
    that; a layer that owned it gets its original class back.

    >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3))
    >>> fold_away(model, "1", target="0")
    >>> model
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): Identity()
    )
    """
    batch_norm = model.get_submodule(layer_path)
    if target is not None:
        _ensure_bias(model.get_submodule(target), batch_norm)
    activation = batch_norm.activation if isinstance(batch_norm, ActivatedBatchNorm) else None
    owner = model.get_submodule(layer_path.rpartition(".")[0])
    if isinstance(owner, Normalized) and activation is None:
        give_class_back(owner)
    else:
        rest = ResidualActivation(activation) if residual else activation_module(activation)
        replace_module(model, layer_path, rest)


def give_class_back(layer: Normalized) -> None:
    """Make a layer that owns a batch norm what it was before, without it.

    >>> from bnkit import add
    >>> twin = add(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(4, 2))
    >>> give_class_back(twin[0])
    >>> twin[0]
    Linear(in_features=2, out_features=3, bias=False)
    """
    original: Any = original_class(layer)
    del layer.batchnorm, layer.batchnorm_layout
    layer.__class__ = original


def _ensure_bias(layer: Any, batch_norm: Any) -> None:
    if layer.bias is not None:
        return
    weight, shift = layer.weight, batch_norm.bias
    trains = weight.requires_grad or (shift is not None and shift.requires_grad)
    bias = nn.Parameter(weight.detach().new_zeros(features_out(layer)), requires_grad=trains)
    layer.register_parameter("bias", bias)
