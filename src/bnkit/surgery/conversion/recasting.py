"""`recast`: a normalisation becomes one of another kind in place, and stays the same object.

So whatever else there is about it stays too: hooks, attributes, parameters and buffers that others
gave it, every place of the model that holds it, and all that refers to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.behaviour import behaviour_of, has_known_forward
from bnkit.internals import children_of, registered_names, take_over_registered
from bnkit.layers.activated import enclose
from bnkit.layers.batch_norm import GuardedBatchNorm
from bnkit.layers.domains import DomainBatchNorm, domain
from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.surgery.conversion.kinds import (
    DEFAULT_GROUPS,
    KINDS,
    Kind,
    base_of,
    family_of,
    name_and_rank,
)

PARAMETERS = ("weight", "bias")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
NOTE = "_kept_by_conversion"  # attribute: what the layer's kind has no place for
CARRIED = {"momentum": 0.1, "guard": True}  # and how new layers have them
_OF_ANOTHER_LIBRARY = frozenset([*PARAMETERS, *STATISTICS, "eps", "affine"])


@dataclass(frozen=True)
class State:
    """What the kinds have in common, and a layer keeps when it becomes one of another kind.

    `trains` says which parameters require gradients, or would if the layer were not frozen.
    `statistics` are empty for group and instance norms that have none; `of_domains` is what each
    domain of a per-domain layer has for itself.
    """

    num_features: int
    eps: float
    affine: bool
    track_running_stats: bool
    parameters: Mapping[str, Tensor | None]
    statistics: Mapping[str, Tensor | None]
    trains: Mapping[str, bool]
    momentum: float | None = 0.1
    guard: bool = True
    activation: str | None = None
    non_finite_batches: Tensor | None = None
    of_domains: Mapping[str, Mapping[str, Tensor | None]] = field(default_factory=dict)
    domain: str = ""


def recast(
    layer: nn.Module,
    kind: Kind,
    rank: int,
    options: Mapping[str, Any],
    *,
    like: Tensor | None = None,
) -> None:
    """Make `layer` one of `kind` in place, for `rank` dimensions beside batch and channels.

    Statistics and parameters that it needs and does not have begin as in torch, on the device of
    `like` where the layer has no tensors.

    >>> layer = nn.BatchNorm1d(4)
    >>> weight = layer.weight
    >>> recast(layer, KINDS["ghost"], 1, {"virtual_batch_size": 2})
    >>> layer.virtual_batch_size, layer.weight is weight
    (2, True)
    """
    before = state_of(layer)
    after = replace(before, **{n: v for n, v in options.items() if n in kind.carried})
    own = {name: value for name, value in options.items() if name in kind.options}
    if _is_tried(layer):  # what its own forward called is computed by the new kind
        for name in [*children_of(layer)]:
            delattr(layer, name)
    made = _made_from(after, kind, rank, own, like=like)
    _take_over(layer, made, own_names(layer))
    note = _what_has_no_place(after, made)
    vars(layer).pop(NOTE, None)
    if note:
        vars(layer)[NOTE] = note
    if before.activation is not None:  # of another library's class, which computed it
        enclose(layer, before.activation)


def _made_from(
    state: State,
    kind: Kind,
    rank: int,
    own: Mapping[str, Any],
    *,
    like: Tensor | None = None,
) -> nn.Module:
    """Return a new layer of `kind` with this state, whose tensors it takes as they are."""
    tensors = [*state.parameters.values(), *state.statistics.values()]
    floating = (t for t in tensors if t is not None and t.is_floating_point())
    model = next(floating, torch.empty(0) if like is None else like)
    made_by: type[Any] = kind.classes[rank - 1]
    options = {**own, "device": model.device, "dtype": model.dtype, "eps": state.eps}
    if kind.family == "group":
        groups = options.pop("num_groups", DEFAULT_GROUPS)
        made: nn.Module = made_by(groups, state.num_features, **options)
        _give_parameters(made, state, needed=True)
        return made
    options["momentum"] = state.momentum
    if kind.family == "instance":
        return _instance_norm(state, made_by, options)
    guarded = {"guard": state.guard} if "guard" in kind.carried else {}
    return _batch_norm(state, made_by, {**options, **guarded})


def _batch_norm(state: State, made_by: type[Any], options: Mapping[str, Any]) -> nn.Module:
    made: Any = made_by(state.num_features, **options)
    made.affine = state.affine and made.affine  # which may be the own option of its kind
    made.track_running_stats = state.track_running_stats
    if state.non_finite_batches is not None and "guard" in options:
        made.non_finite_batches = state.non_finite_batches
    _give_parameters(made, state)
    _give_statistics(made, state)
    return made  # type: ignore[no-any-return]  # made by a class of any kind


def _instance_norm(state: State, made_by: type[Any], options: Mapping[str, Any]) -> nn.Module:
    made: Any = made_by(state.num_features, affine=True, **options)
    made.affine = state.affine or not made.track_running_stats
    _give_parameters(made, state, needed=not made.track_running_stats)
    if made.track_running_stats:
        _give_statistics(made, state)
    return made  # type: ignore[no-any-return]  # as above


def _give_parameters(made: nn.Module, state: State, *, needed: bool = False) -> None:
    """Put the parameters of the state into `made`; new ones where it has none do not train."""
    for name, value in state.parameters.items():
        if value is None and needed:
            made.get_parameter(name).requires_grad_(False)
        elif isinstance(made, FrozenBatchNorm):
            # Apart from a parameter, which another layer may share and train.
            apart = value.detach().clone() if isinstance(value, nn.Parameter) else value
            made.register_buffer(name, apart)
        elif value is None or isinstance(value, nn.Parameter):
            made.register_parameter(name, value)
        else:
            made.register_parameter(name, nn.Parameter(value.detach(), state.trains[name]))


def _give_statistics(made: Any, state: State) -> None:
    """Put the running statistics of the state, if it has some or none at all, into `made`."""
    for name, value in state.statistics.items():
        made.register_buffer(name, value)
    mean = state.statistics.get("running_mean")
    if mean is not None and made.num_batches_tracked is None:  # other libraries' frozen ones
        made.num_batches_tracked = torch.zeros((), dtype=torch.long, device=mean.device)
    if isinstance(made, DomainBatchNorm) and state.statistics:
        _give_to_domains(made, state)


def _give_to_domains(made: DomainBatchNorm, state: State) -> None:
    """Give each domain what it had for itself, else what the layer has."""
    of_layer = {key: getattr(made, key) for key in made.by_domain}
    taken: set[int] = set()
    for name in made.domains:
        own = state.of_domains.get(name, {})
        with domain(made, name):
            for key, of_all in of_layer.items():
                value = own.get(key, of_all)
                setattr(made, key, _apart(value) if id(value) in taken else value)
                taken.add(id(value))
    made.domain = state.domain if state.domain in made.domains else made.domain


def _apart(tensor: Tensor | None) -> Tensor | None:
    """Return another tensor with the same values, that trains where this one does."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
    return None if tensor is None else tensor.clone()


# --- the change of class


def own_names(layer: nn.Module) -> frozenset[str]:
    """Return the names that the layer has because of its kind, and would not have as another.

    >>> sorted(own_names(nn.GroupNorm(2, 4)))
    ['affine', 'bias', 'eps', 'num_channels', 'num_groups', 'weight']
    """
    base: Any = base_of(layer)
    if base is None:
        return _OF_ANOTHER_LIBRARY
    if family_of(layer) == "group":
        bare: nn.Module = base(1, 1)
    else:
        kind = KINDS.get(name_and_rank(layer)[0])
        bare = base(1, **({} if kind is None else kind.options_of(layer)))
    return frozenset([*_attributes(bare), *registered_names(bare)])


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module but for what every module has."""
    of_all = vars(nn.Module())
    return {name: value for name, value in vars(module).items() if name not in of_all}


def _take_over(layer: nn.Module, made: nn.Module, names: frozenset[str]) -> None:
    """Give `layer` the class of `made` and all that it has, instead of these `names`."""
    for name in names:
        vars(layer).pop(name, None)
    layer.__class__ = type(made)
    vars(layer).update(_attributes(made))
    take_over_registered(layer, made, names)


def _what_has_no_place(state: State, made: nn.Module) -> dict[str, Any]:
    """Return what is not as new layers have it, and `made` cannot hold: for the way back."""
    note: dict[str, Any] = {
        name: getattr(state, name)
        for name, default in CARRIED.items()
        if getattr(state, name) != default and not hasattr(made, name)
    }
    still = [name for name in PARAMETERS if not state.trains[name]]
    if still and isinstance(made, FrozenBatchNorm):
        note["trains"] = dict.fromkeys(still, False)
    return note


# --- what a layer keeps


def state_of(layer: Any) -> State:
    """Return the state of a normalisation of any kind.

    >>> state_of(nn.GroupNorm(2, 4, eps=0.1)).eps
    0.1
    """
    parameters = {name: getattr(layer, name, None) for name in PARAMETERS}
    statistics = {name: getattr(layer, name, None) for name in STATISTICS}
    if family_of(layer) != "batch" and statistics["running_mean"] is None:
        statistics = {}  # it has no need of any, and a batch norm begins with new ones
    eps, activation, carried = _numbers_of(layer)
    return State(
        num_features=features_of(layer),
        eps=eps,
        affine=bool(getattr(layer, "affine", parameters["weight"] is not None)),
        track_running_stats=getattr(layer, "track_running_stats", True) or not statistics,
        parameters=parameters,
        statistics=statistics,
        trains=_which_train(layer, parameters),
        activation=activation,
        non_finite_batches=getattr(layer, "non_finite_batches", None),
        of_domains=_of_domains(layer),
        domain=layer.domain if isinstance(layer, DomainBatchNorm) else "",
        **carried,
    )


def _numbers_of(layer: Any) -> tuple[float, str | None, dict[str, Any]]:
    """Return eps, the activation and what is carried along: of other classes as they compute."""
    carried = {name: _carried(layer, name, default) for name, default in CARRIED.items()}
    if not _is_tried(layer):
        return layer.eps, None, carried
    found = behaviour_of(layer)
    assert found.eps is not None  # the survey has let it pass
    if found.share and carried["momentum"] is not None:
        carried["momentum"] = found.share
    return found.eps, found.activation_name, carried


def _is_tried(layer: nn.Module) -> bool:
    """Return whether a trial says what the layer computes: a batch norm of another class."""
    named = isinstance(layer, GuardedBatchNorm) or family_of(layer) != "batch"
    return not (named or has_known_forward(layer))


def _carried(layer: nn.Module, name: str, default: Any) -> Any:
    return getattr(layer, name, vars(layer).get(NOTE, {}).get(name, default))


def _which_train(layer: nn.Module, parameters: Mapping[str, Any]) -> dict[str, bool]:
    """Return which parameters train, or would if they were not buffers."""
    noted = vars(layer).get(NOTE, {}).get("trains", {})
    return {
        name: p.requires_grad if isinstance(p, nn.Parameter) else noted.get(name, True)
        for name, p in parameters.items()
    }


def _of_domains(layer: nn.Module) -> dict[str, dict[str, Tensor | None]]:
    found: dict[str, dict[str, Tensor | None]] = {}
    if not isinstance(layer, DomainBatchNorm):
        return found
    for name in layer.domains:
        with domain(layer, name):
            found[name] = {key: getattr(layer, key) for key in layer.by_domain}
    return found


def features_of(layer: Any) -> int:
    """Return how many channels a normalisation of any class has; 0 where nothing says it.

    >>> features_of(nn.GroupNorm(2, 4)), features_of(nn.SyncBatchNorm(3))
    (4, 3)
    """
    named = getattr(layer, "num_channels", None) or getattr(layer, "num_features", None)
    held = (*STATISTICS[:1], *PARAMETERS)
    tensors = (getattr(layer, name, None) for name in held)
    return int(named or next((t.numel() for t in tensors if isinstance(t, Tensor)), 0))
