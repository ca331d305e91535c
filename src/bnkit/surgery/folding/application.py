"""What a fold does to a model: the layer's new weight and bias, and a batch norm less."""

from collections.abc import Mapping
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
from bnkit.surgery.operations import operation, replace_module

Side = Literal["before", "after"]  # where the layer is that takes the batch norm in


def folded(
    batch_norm: nn.Module, layer: Any, *, side: Side, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of `layer` with `batch_norm` folded in, in the dtype of its weight.

    Feature i of the layer, of its output where it stands before the batch norm and else of its
    input, is channel `features[i]` of the batch norm (−1: none).
    """
    affine = affine_of(batch_norm).take(features, like=layer.weight)
    weight, bias = (after_layer if side == "before" else before_layer)(layer, affine)
    return weight, bias.to(weight.dtype)


@operation
def fold_away(
    model: nn.Module,
    layer: str,
    *,
    target: str | None = None,
    residual: bool = False,
    side: Side = "before",
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Fold the batch norm at `layer` of `model` into the layer at `target`, in place.

    `values` holds "features" (see `folded`); without it the structure alone changes, as for a
    checkpoint that brings its weights. The target stands on that `side` of the batch norm, and gets
    a bias if it has none, which trains if its weight or the batch norm's bias does. What remains of
    the batch norm is its activation and, with `residual`, the sum before that; a layer that owned
    it gets its original class back.

    >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3))
    >>> fold_away(model, "1", target="0", values={"features": torch.arange(3)})
    >>> model
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): Identity()
    )
    """
    new = None
    if target is not None and values is not None:
        batch_norm, host = model.get_submodule(layer), model.get_submodule(target)
        new = folded(batch_norm, host, side=side, features=values["features"])
    take_out(model, layer, target=target, new=new, residual=residual)


@torch.no_grad()
def take_out(
    model: nn.Module,
    layer: str,
    *,
    target: str | None,
    new: tuple[Tensor, Tensor] | None,
    residual: bool,
) -> None:
    """Take the batch norm at `layer` out of `model`, with this `new` weight and bias for `target`.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    >>> take_out(model, "1", target="0", new=(torch.ones(1, 1), torch.zeros(1)), residual=False)
    >>> model(torch.tensor([[7.0]])).item()
    7.0
    """
    batch_norm = model.get_submodule(layer)
    if target is not None:
        host: Any = model.get_submodule(target)
        _ensure_bias(host, batch_norm)
        if new is not None:
            host.weight.copy_(new[0])
            host.bias.copy_(new[1])
    activation = batch_norm.activation if isinstance(batch_norm, ActivatedBatchNorm) else None
    owner = model.get_submodule(layer.rpartition(".")[0])
    if isinstance(owner, Normalized) and activation is None:
        give_class_back(owner)
    else:
        rest = ResidualActivation(activation) if residual else activation_module(activation)
        replace_module(model, layer, rest)


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
