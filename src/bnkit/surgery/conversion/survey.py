"""Which layers of a model can become another kind, how the model uses them, and why others cannot.

What is asked of a layer is asked once, here: the class it is of, the state it has, and, where the
model is run on an example, the calls of it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from bnkit.behaviour import Behaviour, behaviour_of
from bnkit.dataflow import duplicate, observe_in_training
from bnkit.layers.sync import SynchronisedBatchNorm
from bnkit.norms import NOT_CHOSEN, Where
from bnkit.observation import Before
from bnkit.roles import WEIGHT_LAYERS, can_own_batch_norm, is_batch_norm, layer_kind
from bnkit.surgery.conversion.kinds import (
    DEFAULT_GROUPS,
    Kind,
    additions_of,
    base_of,
    family_of,
    name_and_rank,
)
from bnkit.surgery.conversion.recasting import features_of, own_names, state_of
from bnkit.surgery.folding.arithmetic import features_out
from bnkit.surgery.folding.candidates import functional_batch_norms
from bnkit.surgery.plan import LeftAlone
from bnkit.surgery.verification import Outcome, SurgeryError, trace_itself


@dataclass
class Use:
    """How the model calls a layer: the shapes of its inputs, and what it gives beside them."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    rank: int | None = None  # that of the weight layer before it, where nothing was run
    residual: bool = False
    keywords: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Target:
    """What layers are to become: the kind, and the options that were given for it."""

    kind: Kind
    options: Mapping[str, Any]

    def options_for(self, layer: nn.Module) -> dict[str, Any]:
        """Return the options for this layer, which keeps what it has if it is of the kind."""
        same = name_and_rank(layer)[0] == self.kind.name
        own = self.kind.options_of(layer) if same else {}
        if self.kind.family == "group" and not same:
            own = {"num_groups": _groups_for(features_of(layer))}
        return {**own, **self.options}


def _groups_for(channels: int) -> int:
    """Return the most groups, 32 at most, that divide the channels and have two or more each.

    Wu and He 2018 (section 3.1) take 32; few channels in groups of one would be instance norm.
    """
    most = min(DEFAULT_GROUPS, max(channels // 2, 1))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the batch, group and instance norms of `model`, each once: also of other libraries.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2))
    >>> [path for path, _ in candidates(model)]
    ['1']
    """
    for path, module in model.named_modules():
        if base_of(module) is not None or is_batch_norm(module):
            yield path, module


def uses_of(
    model: nn.Module, example: Any
) -> tuple[Mapping[str, Use], tuple[LeftAlone, ...], Outcome]:
    """Return how each layer is used in one run, functional batch norms, and what the model gave."""
    uses: dict[str, Use] = {path: Use() for path, _ in candidates(model)}
    subject = duplicate(model)
    flow, outcome = trace_itself(subject, example, before=_noting(uses))
    idle = {path: use for path, use in uses.items() if not use.shapes}
    if idle:  # such as heads that run in training mode alone
        observe_in_training(model, example, before=_noting(idle))
    return uses, tuple(functional_batch_norms(flow)), outcome


def _noting(uses: Mapping[str, Use]) -> Before:
    """Return a hook that notes how these layers are called."""

    def note(path: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if path not in uses:
            return
        given = [*args, *(kwargs[name] for name in ("input", "residual") if name in kwargs)]
        use = uses[path]
        use.shapes += [tuple(t.shape) for t in given[:1] if isinstance(t, Tensor)]
        use.residual |= any(part is not None for part in given[1:])
        use.keywords |= kwargs.keys() - {"input", "residual"}

    return note


def uses_without_example(model: nn.Module) -> Mapping[str, Use]:
    """Return for layers of any rank that of the weight layer before them, which fits them.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4))
    >>> uses_without_example(model)["1"].rank
    2
    """
    uses: dict[str, Use] = {}
    before: nn.Module | None = None
    for path, module in model.named_modules():
        if can_own_batch_norm(module):
            before = module
            continue
        any_rank = base_of(module) is not None and name_and_rank(module)[1] is None
        if any_rank and before is not None and features_out(before) == features_of(module):
            uses[path] = Use(rank=max((WEIGHT_LAYERS[layer_kind(before)] or 3) - 2, 1))
    return uses


def objection(layer: Any, target: Target, use: Use | None) -> str | None:
    """Return why this layer cannot become what it should, or None."""
    return (
        _objection_to_class(layer, use.shapes[0] if use and use.shapes else ())
        or _objection_to_state(layer, target)
        or _objection_to_names(layer, target)
        or _objection_to_calls(layer, target, use)
    )


def rank_of(layer: nn.Module, use: Use | None) -> int | None:
    """Return for how many dimensions, beside batch and channels, a layer is, None if unknown.

    Its class says it, or its calls do, or the name of another library's class.

    >>> rank_of(nn.BatchNorm2d(3), None), rank_of(nn.SyncBatchNorm(3), Use([(8, 3, 5, 5)]))
    (2, 2)
    """
    _, rank = name_and_rank(layer)
    if rank is not None:
        return rank
    found = {max(len(shape) - 2, 1) for shape in (use.shapes if use else ())}
    if not found and use is not None and use.rank is not None:
        return use.rank
    if found:
        return found.pop() if len(found) == 1 and found <= {1, 2, 3} else None
    ending = type(layer).__name__[-2:].lower()
    return {"1d": 1, "2d": 2, "3d": 3}.get(ending)


def is_equivalent(layer: Any, target: Target) -> bool:
    """Return whether the layer computes the same in eval mode when it is what it should be.

    >>> from bnkit.surgery.conversion.kinds import KINDS
    >>> target = Target(KINDS["instance"], {})
    >>> is_equivalent(nn.BatchNorm1d(3), target)
    False
    """
    tracks = target.options_for(layer).get("track_running_stats", False)
    fixed = family_of(layer) == "batch" or _layer_statistics(layer) is not None
    return fixed and (target.kind.family == "batch" or bool(tracks))


def _layer_statistics(layer: nn.Module) -> Tensor | None:
    return getattr(layer, "running_mean", None)


def _is_that_already(layer: nn.Module, target: Target) -> bool:
    same = name_and_rank(layer)[0] == target.kind.name
    return same and all(getattr(layer, name) == value for name, value in target.options.items())


def _refuse_shapes(path: str, layer: Any, target: Target, use: Use) -> None:
    """Raise SurgeryError where the new kind would have nothing to normalise by."""
    channels = state_of(layer).num_features
    if target.kind.family == "group":
        _refuse_groups(path, channels, target.options_for(layer), use)
    if target.kind.family == "instance":
        for shape in use.shapes:
            if math.prod(shape[2:]) == 1:
                raise SurgeryError(
                    f"layer '{path}' gets an input of shape {shape}, in which an instance has one "
                    f"value per channel, and one value has no variance: leave it out by `where`"
                )


def _refuse_groups(path: str, channels: int, options: Mapping[str, Any], use: Use) -> None:
    groups = options.get("num_groups", DEFAULT_GROUPS)
    if channels % groups:
        raise SurgeryError(
            f"layer '{path}' has {channels} channels, which {groups} groups do not divide: pass "
            f"`num_groups`, as {math.gcd(channels, groups)}, or leave the layer out by `where`"
        )
    for shape in use.shapes:
        if channels // groups * math.prod(shape[2:]) == 1:
            raise SurgeryError(
                f"layer '{path}' gets an input of shape {shape}, of which {groups} groups have one "
                f"value each, and one value has no variance: pass a smaller `num_groups`, or leave "
                f"the layer out by `where`"
            )


def _objection_to_class(layer: Any, shape: tuple[int, ...]) -> str | None:
    statistics = _layer_statistics(layer)
    if statistics is not None and statistics.dim() != 1:
        return "it has statistics for each step of a recurrent layer"
    if "forward" in vars(layer):
        return "its forward is set on the instance"
    held = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    computed = getattr(layer, "weight", None) is not None and "weight" not in held
    if computed or hasattr(layer, "parametrizations"):
        return "its weight or bias is computed (weight norm, pruning and the like)"
    if base_of(layer):
        return _objection_to_additions(layer, shape)
    objection = _objection_to_behaviour(behaviour_of(layer, shape=shape))
    return None if objection is None else f"a batch norm of another library: {objection}"


def _objection_to_additions(layer: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Return why a subclass is more than its base, as far as a trial does not show otherwise."""
    additions = additions_of(layer)
    if "forward" in additions and family_of(layer) != "batch":
        return "its class has a forward of its own"
    if "forward" in additions:
        found = behaviour_of(layer, shape=shape)
        private = {name for name in additions if name.startswith("_")}
        additions = [name for name in additions if name not in {"forward", *private}]
        if found.why_not_affine is None and not found.is_plain:
            return "its class has a forward of its own, which does not train as torch's batch norm"
        objection = _objection_to_behaviour(found)
        if objection is not None:
            return objection
    if additions:
        return f"its class defines {additions[0]!r}, which another kind would not have"
    return None


def _objection_to_behaviour(found: Behaviour) -> str | None:
    if found.why_not_affine is not None:
        return found.why_not_affine
    if found.eps is None:
        return "its weight, bias and statistics are not under the names that torch gives them"
    if found.activation is not None and found.activation_name is None:
        kind = type(found.activation).__name__
        return f"it ends in {kind}, which other kinds of batch norm do not compute"
    return None


def _objection_to_state(layer: nn.Module, target: Target) -> str | None:
    kind, options = target.kind, target.options_for(layer)
    affine, has_affine = options.get("affine", True), state_of(layer).affine
    if affine == "each" and not has_affine:
        return "it has no weight and bias, so domains cannot have their own"
    if affine is False and has_affine:
        return 'its weight and bias would be lost: pass affine=True, or affine="each"'
    if family_of(layer) != "batch" or _layer_statistics(layer) is not None:
        return None
    if kind.needs_statistics or options.get("track_running_stats"):
        return f"it has no running statistics, which {kind.name!r} needs"
    if kind.name == "masked" and options.get("default") is None:
        return 'without running statistics it asks for a mask in eval mode too: pass default="all"'
    return None


def _objection_to_names(layer: nn.Module, target: Target) -> str | None:
    """Return which name the new kind needs that others have given to something of the layer."""
    needed = {*target.kind.options, "activation", "guard", "non_finite_batches"}
    held = {*vars(layer), *dict(layer.named_parameters()), *dict(layer.named_buffers())}
    taken = sorted((held - own_names(layer)) & needed)
    return f"something else on it is called {taken[0]!r}, as other kinds need it" if taken else None


def _objection_to_calls(layer: nn.Module, target: Target, use: Use | None) -> str | None:
    if use is not None and use.residual and target.kind.name == "torch":
        return "called with a residual, which torch's layers do not take"
    if use is not None and not is_equivalent(layer, target) and not use.shapes:
        return "not called on the mini-batches, so nothing calibrates it"
    if rank_of(layer, use) is None and target.kind.family != "group":
        called = "called with inputs of several ranks" if use and use.shapes else "not called"
        return f"its class is for inputs of any rank, and it is {called} on an example: pass one"
    known = {"mask"} if target.kind.name == "masked" else set()
    unknown = (use.keywords if use else set()) - known
    if unknown:
        return f"called with the keyword {min(unknown)!r}, which {target.kind.name!r} does not know"
    return None


# --- the layers that the user wants


Layers = list[tuple[str, nn.Module]]

ALREADY = "already of that kind"


def choose(
    model: nn.Module,
    where: Where | None,
    target: Target | None = None,
    timeout: float | None = None,
) -> tuple[Layers, list[LeftAlone]]:
    """Return the layers that the user wants to be another kind (not `target` yet), and the others.

    `timeout` is the time limit that synchronised layers are to have, None for any.
    """
    chosen, rest = [], []
    for path, layer in candidates(model):
        why = _objection_of_user(path, layer, where)
        if why is None and target and _is_that_already(layer, target):
            why = None if _needs_group(layer, timeout) else ALREADY
        if why is None:
            chosen.append((path, layer))
        else:
            rest.append(LeftAlone(path, type(layer).__name__, why))
    return chosen, rest


def _objection_of_user(path: str, layer: nn.Module, where: Where | None) -> str | None:
    if where is not None:
        return None if where(path, layer) else NOT_CHOSEN
    family = family_of(layer)
    return None if family == "batch" else f"{family} norm, which only `where` chooses"


def part(chosen: Layers, target: Target, uses: Mapping[str, Use]) -> tuple[Layers, list[LeftAlone]]:
    """Part the chosen layers into those that can be converted, and the others."""
    able, unable = [], []
    for path, layer in chosen:
        why = objection(layer, target, uses.get(path))
        if why is None:
            _refuse_shapes(path, layer, target, uses.get(path, Use()))
            able.append((path, layer))
        else:
            unable.append(LeftAlone(path, type(layer).__name__, why))
    return able, unable


def _needs_group(layer: nn.Module, timeout: float | None) -> bool:
    """Return whether it is synchronised without a group of its own, or with another limit."""
    if not isinstance(layer, SynchronisedBatchNorm) or not is_distributed():
        return False
    return timeout is not None or layer.process_group is None


def is_distributed() -> bool:
    """Return whether this process is one of several that torch.distributed knows."""
    return dist.is_available() and dist.is_initialized()
