"""Small operations on one layer, of which the doctor's fixes are made."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.behaviour import affine_of
from bnkit.observation import stop_training
from bnkit.surgery.folding.arithmetic import TRANSPOSED
from bnkit.surgery.operations import (
    check_numbers,
    operation,
    replace_module,
    write_values,
)


@operation
@torch.no_grad()
def set_numbers(
    model: nn.Module,
    layer: str,
    *,
    momentum: float | None = None,
    eps: float | None = None,
    rescale: bool = False,
) -> None:
    """Give the batch norm at this path another momentum, another eps, or both.

    With `rescale` its weight changes along with eps, so that it computes the same in eval mode.

    >>> model = nn.Sequential(nn.BatchNorm1d(2, momentum=0.99))
    >>> set_numbers(model, "0", momentum=0.01)
    >>> model[0].momentum, model[0].eps
    (0.01, 1e-05)
    """
    check_numbers(momentum=momentum, eps=0.0 if eps is None else eps)
    changed: Any = model.get_submodule(layer)
    if rescale and eps is not None:
        # γ/√(σ² + ε) stays: γ becomes that times the new √(σ² + ε).
        scale = affine_of(changed).scale
        changed.weight.copy_(scale * (changed.running_var.to(scale) + eps).sqrt())
    for name, value in (("momentum", momentum), ("eps", eps)):
        if value is not None:
            setattr(changed, name, value)


@operation
@torch.no_grad()
def drop_bias(model: nn.Module, layer: str, *, values: Mapping[str, Tensor] | None = None) -> None:
    """Take the bias off the dense or conv layer at this path, and out of the means after it.

    `values` says, by the path of each batch norm that the layer feeds, in which of its channels
    each feature of the layer lies, −1 for none: from its running mean the bias is subtracted, so
    that the model computes the same in both modes.

    >>> model = nn.Sequential(nn.Linear(2, 3))
    >>> drop_bias(model, "0")
    >>> model[0]
    Linear(in_features=2, out_features=3, bias=False)
    """
    biased: Any = model.get_submodule(layer)
    for path, channels in (values or {}).items():
        mean = getattr(model.get_submodule(path), "running_mean", None)
        if mean is not None:
            kept = channels >= 0
            mean[channels[kept]] -= biased.bias[kept].to(mean)
    biased.register_parameter("bias", None)


@operation
def leave_out(model: nn.Module, layer: str) -> None:
    """Put an identity where the layer at this path is.

    >>> model = nn.Sequential(nn.Dropout(0.5))
    >>> leave_out(model, "0")
    >>> model[0]
    Identity()
    """
    replace_module(model, layer, nn.Identity())


@operation
@torch.no_grad()
def merge_norms(model: nn.Module, layer: str, *, into: str) -> None:
    """Give the batch norm at `into` the affine map of the one at `layer`, which reads it.

    The latter becomes an identity. The model computes the same in eval mode.

    >>> model = nn.Sequential(nn.BatchNorm1d(1, eps=0.0), nn.BatchNorm1d(1, eps=3.0))
    >>> merge_norms(model, "1", into="0")
    >>> model[0].weight.item(), model[1]
    (0.5, Identity())
    """
    norm: Any = model.get_submodule(into)
    affine = affine_of(model.get_submodule(layer))
    scale, center, offset = (
        t.to(norm.weight) for t in (affine.scale, affine.center, affine.offset)
    )
    norm.bias.copy_(scale * (norm.bias - center) + offset)
    norm.weight.mul_(scale)
    leave_out(model, layer)


@operation
def unshare(model: nn.Module, layer: str) -> None:
    """Put a copy of the layer at this path there, so that its other places keep it for themselves.

    >>> shared = nn.BatchNorm1d(2)
    >>> model = nn.Sequential(shared, shared)
    >>> unshare(model, "1")
    >>> model[0] is shared, model[1] is shared
    (True, False)
    """
    parent, _, name = layer.rpartition(".")
    setattr(model.get_submodule(parent), name, copy.deepcopy(model.get_submodule(layer)))


@operation
@torch.no_grad()
def turn_signs(
    model: nn.Module, layer: str, *, feeding: str, values: Mapping[str, Tensor] | None = None
) -> None:
    """Make every γ of the batch norm at this path positive, where `feeding` alone feeds it.

    `values` holds "channels": in which channel each feature of the feeding layer lies, −1 for none.
    Weights, biases and running means of the channels turn their signs with γ, so that the model
    computes the same in both modes, to the bit.

    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    >>> _ = nn.init.constant_(model[0].weight, 2.0), nn.init.constant_(model[1].weight, -3.0)
    >>> turn_signs(model, "1", feeding="0", values={"channels": torch.tensor([0])})
    >>> model[0].weight.item(), model[1].weight.item()
    (-2.0, 3.0)
    """
    if values is None:
        return  # the structure stays as it is
    before: Any = model.get_submodule(feeding)
    norm: Any = model.get_submodule(layer)
    channels, turned = values["channels"], norm.weight < 0
    rows = turned[channels.clamp(min=0)] & (channels >= 0).to(turned.device)
    _turn(before.weight, rows, axis=1 if isinstance(before, TRANSPOSED) else 0)
    for tensor, where in ((before.bias, rows), (norm.running_mean, turned), (norm.weight, turned)):
        if tensor is not None:
            _turn(tensor, where, axis=0)


def _turn(values: Tensor, where: Tensor, *, axis: int) -> None:
    signs = torch.where(where, -1, 1).to(values)
    values.mul_(signs.view([-1 if a == axis else 1 for a in range(values.dim())]))


@operation
def track_statistics(
    model: nn.Module, layer: str, *, values: Mapping[str, Tensor] | None = None
) -> None:
    """Give the batch norm at this path running statistics: `values`, else 0 and 1 if it has none.

    >>> model = nn.Sequential(nn.BatchNorm1d(1, track_running_stats=False))
    >>> track_statistics(model, "0")
    >>> model[0].running_var, model[0].num_batches_tracked
    (tensor([1.]), tensor(0))
    """
    norm: Any = model.get_submodule(layer)
    norm.track_running_stats = True
    if norm.running_mean is None:
        like = torch.empty(norm.num_features) if norm.weight is None else norm.weight.detach()
        norm.running_mean, norm.running_var = torch.zeros_like(like), torch.ones_like(like)
        norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=like.device)
    write_values(model, layer, values=values)


@operation
def leave_training(model: nn.Module, layer: str) -> None:
    """Put the layer at this path in eval mode, whatever its own `train` would do.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> leave_training(model, "0")
    >>> model[0].training
    False
    """
    stop_training(model.get_submodule(layer))


@operation
def use_float32(model: nn.Module, layer: str) -> None:
    """Put parameters and buffers of the layer at this path in float32.

    >>> model = nn.Sequential(nn.BatchNorm1d(1)).half()
    >>> use_float32(model, "0")
    >>> model[0].weight.dtype
    torch.float32
    """
    model.get_submodule(layer).float()
