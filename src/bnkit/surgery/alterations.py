"""Small changes of one layer, in place, by which mends are made: the operations of their plans.

Values that they need come from elsewhere: from what was measured, or from a checkpoint.
"""

import copy
from typing import Any

import torch
from torch import nn

from bnkit.observation import stop_training
from bnkit.surgery.plan import replace_module


def set_numbers(
    model: nn.Module, layer: str, *, momentum: float | None = None, eps: float | None = None
) -> None:
    """Give the batch norm at this path another momentum, another eps, or both.

    >>> model = nn.Sequential(nn.BatchNorm1d(2, momentum=0.99))
    >>> set_numbers(model, "0", momentum=0.01)
    >>> model[0].momentum, model[0].eps
    (0.01, 1e-05)
    """
    changed: Any = model.get_submodule(layer)
    for name, value in (("momentum", momentum), ("eps", eps)):
        if value is not None:
            setattr(changed, name, value)


def write_values(model: nn.Module, layer: str) -> None:
    """Leave the structure as it is: other values, which a checkpoint brings, are all that changes.

    >>> write_values(nn.BatchNorm1d(2), "")
    """


def drop_bias(model: nn.Module, layer: str) -> None:
    """Take the bias off the dense or conv layer at this path.

    >>> model = nn.Sequential(nn.Linear(2, 3))
    >>> drop_bias(model, "0")
    >>> model[0]
    Linear(in_features=2, out_features=3, bias=False)
    """
    model.get_submodule(layer).register_parameter("bias", None)


def leave_out(model: nn.Module, layer: str) -> None:
    """Put an identity in the place of the layer at this path.

    >>> model = nn.Sequential(nn.Dropout(0.5))
    >>> leave_out(model, "0")
    >>> model[0]
    Identity()
    """
    replace_module(model, layer, nn.Identity())


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


def track_statistics(model: nn.Module, layer: str) -> None:
    """Give the batch norm at this path running statistics of 0 and 1, unless it has some.

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


def leave_training(model: nn.Module, layer: str) -> None:
    """Put the layer at this path in eval mode, whatever its own `train` would do.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> leave_training(model, "0")
    >>> model[0].training
    False
    """
    stop_training(model.get_submodule(layer))


def use_float32(model: nn.Module, layer: str) -> None:
    """Put parameters and buffers of the layer at this path in float32.

    >>> model = nn.Sequential(nn.BatchNorm1d(1)).half()
    >>> use_float32(model, "0")
    >>> model[0].weight.dtype
    torch.float32
    """
    model.get_submodule(layer).float()
