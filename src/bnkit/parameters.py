"""`parameter_groups`: batch norm's parameters and biases out of weight decay, by module type."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.parameter import Parameter
from torch.nn.utils.parametrize import ParametrizationList

from bnkit.dataflow.copying import _refuse_uncopiable
from bnkit.internals import AnyConv
from bnkit.layers.affine import ChannelAffine
from bnkit.norms import Where
from bnkit.roles import Role, role_of_module

DECAYED, UNDECAYED = "decayed", "undecayed"

# The layers of torch that have biases, and how the names of those begin: a recurrent layer has
# several, and pruning and weight norm keep `bias_orig` or `bias_g` where `bias` was.
_BIASES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("bias",),
    nn.Bilinear: ("bias",),
    AnyConv: ("bias",),
    nn.RNNBase: ("bias",),
    nn.RNNCellBase: ("bias",),
    nn.MultiheadAttention: ("bias", "in_proj_bias"),
}

# Scales of single features, which decay would shrink: slopes, and what is left of a batch norm.
_SCALES = (nn.PReLU, ChannelAffine)


def parameter_groups(
    model: nn.Module, *, weight_decay: float, where: Where | None = None
) -> list[dict[str, Any]]:
    """Return the model's parameters in two groups for an optimizer: with weight decay, and without.

    Without it are all parameters of normalisations (and of `ChannelAffine`, in which `remove` keeps
    those of a batch norm), the biases of torch's layers, and the slopes of PReLU (He et al. 2015,
    section 2: decay drives them to zero). Modules are classified by type (subclasses included), not
    by name or shape; a normalisation of another library is known by its class. Every other
    parameter is decayed, also one that an unknown module owns directly, whatever it is called.
    `where(path, module)`, asked of each module with parameters of its own, leaves those of a module
    out of weight decay where it is False (embeddings, positions, tokens).

    Together the groups hold what `model.parameters()` gives, each parameter once and in that order:
    a shared one is without decay if one of its modules says so, and frozen ones are kept, so that
    they can be thawed later (an optimizer passes over parameters without a gradient). A group has
    the keys "params", "param_names", "weight_decay" and "name" ("decayed" or "undecayed"); a group
    without parameters is left out.

    Raises ValueError for a `weight_decay` that is not a finite number ≥ 0 and for a model
    without parameters, TypeError for what is not a module or hides its modules.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    >>> groups = parameter_groups(model, weight_decay=1e-4)
    >>> optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    >>> for group in optimizer.param_groups:
    ...     print(group["weight_decay"], group["param_names"])
    0.0001 ['0.weight', '3.weight']
    0.0 ['0.bias', '1.weight', '1.bias', '3.bias']
    """
    _check_weight_decay(weight_decay)
    undecayed = {id(parameter) for parameter in undecayed_parameters(model, where=where)}
    named = list(model.named_parameters())
    if not named:
        raise ValueError(
            f"`model` ({type(model).__name__}) has no parameters: there is nothing to optimise"
        )
    decayed = [(name, parameter) for name, parameter in named if id(parameter) not in undecayed]
    spared = [(name, parameter) for name, parameter in named if id(parameter) in undecayed]
    groups = (DECAYED, float(weight_decay), decayed), (UNDECAYED, 0.0, spared)
    return [
        {
            "params": [parameter for _, parameter in members],
            "param_names": [name for name, _ in members],
            "weight_decay": decay,
            "name": label,
        }
        for label, decay, members in groups
        if members
    ]


def undecayed_parameters(model: nn.Module, *, where: Where | None = None) -> Iterator[Parameter]:
    """Yield the parameters that `parameter_groups` leaves out of weight decay; some may repeat.

    >>> [tuple(p.shape) for p in undecayed_parameters(nn.Linear(4, 3))]
    [(3,)]
    """
    check_readable(model)
    for path, module in model.named_modules():
        owned = list(_owned_parameters(module))
        if not owned or isinstance(module, ParametrizationList):
            continue
        chosen = where is None or where(path, module)
        for name, parameter in owned:
            if not chosen or _is_undecayed(module, name):
                yield parameter


def check_readable(model: nn.Module, argument: str = "model") -> None:
    """Raise TypeError or ValueError, with what to do, unless each part of `model` shows its type.

    >>> check_readable(nn.DataParallel(nn.Linear(2, 2)))
    Traceback (most recent call last):
    TypeError: the model is a DataParallel: pass its .module, and wrap the result
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`{argument}` is a {type(model).__name__}: pass a torch.nn.Module")
    for path, module in model.named_modules():
        _refuse_uncopiable(f"layer '{path}'" if path else "the model", module)


def _owned_parameters(module: nn.Module) -> Iterator[tuple[str, Parameter]]:
    """Yield the module's parameters by name: its own, those in lists, those of parametrisations.

    A parameter behind a parametrisation has the name of what is computed from it.
    """
    yield from module.named_parameters(recurse=False)
    for name, child in module.named_children():
        if isinstance(child, nn.ParameterList | nn.ParameterDict):
            yield from ((name, parameter) for parameter in child.parameters(recurse=False))
    computed = getattr(module, "parametrizations", None)
    if isinstance(computed, nn.ModuleDict):
        for name, originals in computed.items():
            yield from ((name, parameter) for parameter in originals.parameters(recurse=False))


def _is_undecayed(module: nn.Module, name: str) -> bool:
    if role_of_module(module) is Role.NORMALISATION or isinstance(module, _SCALES):
        return True
    return any(
        isinstance(module, kind) and name.startswith(beginnings)
        for kind, beginnings in _BIASES.items()
    )


def _check_weight_decay(weight_decay: float) -> None:
    number = isinstance(weight_decay, int | float) and not isinstance(weight_decay, bool)
    if not (number and math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(
            f"`weight_decay` is {weight_decay!r}: pass a finite number of at least 0, such as 1e-4"
        )


def shared_parameters(model: nn.Module) -> dict[str, str]:
    """Return, by the path of each module with such parameters, another that holds them too.

    >>> layer = nn.Linear(2, 2)
    >>> shared_parameters(nn.ModuleDict({"a": layer, "b": nn.Linear(2, 2)}))
    {}
    """
    holders: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)].append(path)
    return {
        path: other
        for paths in holders.values()
        for path, other in itertools.permutations(paths, 2)
    }
