"""`rebind`: an optimizer goes on with a changed model, by the names of the parameters."""

import inspect
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.optim import LBFGS, Optimizer

from bnkit.dataflow.tensors import replace_tensors
from bnkit.layers.activated import key_of
from bnkit.parameters import DECAYED, UNDECAYED, check_readable, undecayed_parameters


@dataclass(frozen=True, eq=False)
class _Seat:
    """Where an optimizer holds a parameter."""

    group: int
    position: int
    parameter: Tensor


@dataclass(frozen=True, eq=False)
class _Member:
    """A parameter of the new model, its name in the optimizer, and the seat that it takes over."""

    name: str
    parameter: Parameter
    group: int
    seat: _Seat | None

    @property
    def position(self) -> float:
        """The order in its group: new parameters come last."""
        return float("inf") if self.seat is None else self.seat.position


def rebind(optimizer: Optimizer, old_model: nn.Module, new_model: nn.Module) -> Optimizer:
    """Return an optimizer of the same class for `new_model`, which goes on where the old one is.

    Parameters are known by their names in `old_model`, whose parameters `optimizer` holds, and in
    `new_model`. One of the same name stays in its group, with a copy of its state (momentum, step
    count) where its shape is the same too. A new one joins the group that holds another parameter
    of its layer, else of the nearest module around it, else the first group; where the groups are
    those of `parameter_groups`, only among the ones with or without weight decay, as its type asks
    for. One that is gone leaves with its state; one that `optimizer` left out stays out. Groups
    keep their number, their order and all that stands in them, which are then copies, frozen
    parameters and what schedulers note among it. Models and `optimizer` stay as they are.

    Hooks and learning rate schedulers stay bound to the old optimizer: register the hooks again,
    and to go on with a scheduler set its attribute `optimizer` to the result.

    Raises TypeError for an optimizer that cannot be made anew from its groups and defaults, and for
    models that hide their layers; ValueError for an optimizer with parameters that are not in
    `old_model`, for models without a name in common, and for LBFGS, whose state is of all
    parameters together, after its first step if they changed.

    >>> import bnkit
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> twin = bnkit.add(model, torch.zeros(2, 8))
    >>> optimizer = rebind(optimizer, model, twin)
    >>> {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in twin.parameters()}
    True
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"`optimizer` is a {type(optimizer).__name__}: pass a torch.optim.Optimizer"
        )
    check_readable(old_model, "old_model")
    check_readable(new_model, "new_model")
    seats = _seats(optimizer, old_model)
    members = _members(optimizer, seats, old_model, new_model)
    _refuse_strangers(seats, members, new_model)
    _refuse_joint_state(optimizer, members)
    with torch.inference_mode(mode=False):  # state that is made in it could not be updated
        rebound = _made_anew(optimizer, _groups(optimizer, members))
        _carry_state(optimizer, rebound, members)
    return rebound


def _names(model: nn.Module) -> dict[Parameter, list[str]]:
    """Return all keys of each parameter in the state dict: several where it is shared."""
    names: dict[Parameter, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].append(key_of(model, name))
    return names


def _seats(optimizer: Optimizer, model: nn.Module) -> dict[str, _Seat]:
    names: Mapping[Any, list[str]] = _names(model)
    seats: dict[str, _Seat] = {}
    for index, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            if parameter not in names:
                raise ValueError(
                    f"parameter {position} of group {index} of `optimizer`, of shape "
                    f"{tuple(parameter.shape)}, is not in `old_model` ({type(model).__name__}): "
                    f"pass the model whose parameters it optimises, with all of them inside"
                )
            seats |= dict.fromkeys(names[parameter], _Seat(index, position, parameter))
    return seats


def _members(
    optimizer: Optimizer,
    seats: Mapping[str, _Seat],
    old_model: nn.Module,
    new_model: nn.Module,
) -> list[_Member]:
    known = {name for names in _names(old_model).values() for name in names}
    undecayed = {id(parameter) for parameter in undecayed_parameters(new_model)}
    members = []
    for parameter, names in _names(new_model).items():
        seat = next((seats[name] for name in names if name in seats), None)
        if seat is not None:
            given = optimizer.param_groups[seat.group].get("param_names")
            name = given[seat.position] if given else names[0]
            members.append(_Member(name, parameter, seat.group, seat))
        elif known.isdisjoint(names):
            label = UNDECAYED if id(parameter) in undecayed else DECAYED
            group = _group_of_new(names[0], label, optimizer.param_groups, seats)
            members.append(_Member(names[0], parameter, group, None))
    return members


def _group_of_new(
    name: str, label: str, groups: list[dict[str, Any]], seats: Mapping[str, _Seat]
) -> int:
    """Return the group of the nearest parameters, among those with this label if there are any."""
    labelled = [index for index, group in enumerate(groups) if group.get("name") == label]
    allowed = labelled or list(range(len(groups)))
    path = name.rpartition(".")[0]
    while path:
        for neighbour, seat in seats.items():
            if neighbour.startswith(f"{path}.") and seat.group in allowed:
                return seat.group
        path = path.rpartition(".")[0]
    return allowed[0]


def _groups(optimizer: Optimizer, members: list[_Member]) -> list[dict[str, Any]]:
    groups = []
    for index, group in enumerate(optimizer.param_groups):
        own = sorted((m for m in members if m.group == index), key=lambda m: m.position)
        kept = {key: _copied(group[key]) for key in group if key not in ("params", "param_names")}
        names = {"param_names": [m.name for m in own]} if "param_names" in group else {}
        groups.append({"params": [m.parameter for m in own], **kept, **names})
    return groups


def _made_anew(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    kind = type(optimizer)
    defaults = _copied(optimizer.defaults)
    try:
        accepted = inspect.signature(kind).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        options = {key: defaults[key] for key in defaults if anything or key in accepted}
        rebound = kind([dict(group) for group in groups], **options)
    except Exception as error:
        raise TypeError(
            f"`optimizer` is a {kind.__name__}, which cannot be made anew from its groups and "
            f"defaults ({type(error).__name__}: {error}): make one for the new model yourself"
        ) from error
    rebound.defaults = defaults
    for made, group in zip(rebound.param_groups, groups, strict=True):
        made.update(group)
    return rebound


def _carry_state(optimizer: Optimizer, rebound: Optimizer, members: list[_Member]) -> None:
    for member in members:
        old = None if member.seat is None else member.seat.parameter
        if old is not None and old in optimizer.state and old.shape == member.parameter.shape:
            state = _following(optimizer.state[old], old, member.parameter)
            rebound.state[member.parameter] = state
    states: Mapping[Any, Any] = optimizer.state  # some classes keep state of no parameter in it
    for key in states:
        if not isinstance(key, Tensor):
            rebound.state[key] = _copied(states[key])


def _following(state: Any, old: Tensor, new: Tensor) -> Any:
    """Return a copy of the state, where and in the dtype in which the new parameter is."""

    def follow(tensor: Tensor) -> Tensor:
        if tensor.shape != old.shape or not tensor.dim():
            return tensor.detach().clone()  # a step count stays in its own dtype, on its device
        dtype = new.dtype if tensor.dtype == old.dtype else tensor.dtype
        return tensor.detach().clone().to(new.device, dtype)

    return replace_tensors(state, follow)


def _copied(value: Any) -> Any:
    return replace_tensors(value, lambda tensor: tensor.detach().clone())


def _refuse_strangers(
    seats: Mapping[str, _Seat], members: list[_Member], new_model: nn.Module
) -> None:
    if seats and all(member.seat is None for member in members):
        first = next(iter(seats))
        names = [name for name, _ in new_model.named_parameters()]
        raise ValueError(
            f"`new_model` ({type(new_model).__name__}) has no parameter by a name that the "
            f"optimizer's have in `old_model`, such as {first!r}, only "
            f"{', '.join(map(repr, names[:4])) or 'none at all'}: pass the part of it that "
            f"stands for `old_model`"
        )


def _refuse_joint_state(optimizer: Optimizer, members: list[_Member]) -> None:
    if not isinstance(optimizer, LBFGS) or not optimizer.state:
        return
    before = [parameter.shape for parameter in optimizer.param_groups[0]["params"]]
    after = [member.parameter.shape for member in sorted(members, key=lambda m: m.position)]
    if before != after or any(member.seat is None for member in members):
        raise ValueError(
            f"`optimizer` is a {type(optimizer).__name__} after its first step, whose state is of "
            f"all parameters together, and the new model has others: make one for the new model "
            f"yourself"
        )
