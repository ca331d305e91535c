"""`convert`: the normalisation layers of a model become layers of another kind, there and back."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from bnkit.batches import Inputs
from bnkit.dataflow import duplicate
from bnkit.layers.activated import ActivatedNorm, disclose, enclose, path_of_norm
from bnkit.layers.affine import activation_module
from bnkit.layers.domains import DomainBatchNorm
from bnkit.layers.exchange import make_group
from bnkit.norms import Where
from bnkit.options import parameters_of, showing
from bnkit.surgery.conversion.calibration import Calls, Given, Movement, calibrate, movement
from bnkit.surgery.conversion.kinds import find_kind
from bnkit.surgery.conversion.recasting import recast
from bnkit.surgery.conversion.survey import (
    ALREADY,
    Target,
    Use,
    choose,
    is_distributed,
    is_equivalent,
    part,
    rank_of,
    uses_of,
    uses_without_example,
)
from bnkit.surgery.operations import Edit, make_edits, operation, replace_module, write_values
from bnkit.surgery.plan import Plan, in_order_of
from bnkit.surgery.verification import SurgeryError

ToLayer = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Conversion(Plan):
    """The plan of `convert`: `movement` says how far the output moves, where it does not stay.

    That is where layers are calibrated, and where a callable of the user makes them.
    """

    movement: Movement | None = field(default=None, metadata={"record": Movement})

    def __str__(self) -> str:
        table = super().__str__()
        return table if self.movement is None else f"{table}\n{self.movement}"


def _named(edits: Iterable[Edit], trial: nn.Module) -> tuple[Edit, ...]:
    """Return the edits with the class that each layer becomes, by making them in `trial`."""
    edits = tuple(edits)
    made = make_edits(trial, edits)
    kinds = [type(made.get_submodule(edit.layer)).__name__ for edit in edits]
    return tuple(
        replace(edit, action=f"become {kind}{edit.action}")
        for edit, kind in zip(edits, kinds, strict=True)
    )


def _calibrated(
    model: nn.Module, plan: Conversion, layers: Iterable[str], calls: Calls
) -> Conversion:
    """Return the plan in which these layers get the values that `calibrate` finds for them."""
    wanted = set(layers)
    states = calibrate(model, {e.layer: e for e in plan.edits if e.layer in wanted}, calls)
    edits = tuple(replace(e, values=states.get(e.layer, {})) for e in plan.edits)
    return replace(plan, edits=edits)


def _moved(
    model: nn.Module, plan: Conversion, examples: Iterable[Any], *, tolerance: float | None
) -> Conversion:
    """Return the plan with how far the output moves; SurgeryError if that is over `tolerance`."""
    found = movement(model, plan.apply(model), examples)
    if tolerance is not None and not found.largest <= tolerance:
        raise SurgeryError(
            f"the output moves by {found.largest:.2g} (max|a − b| / max|a|), and `tolerance` "
            f"allows {tolerance:.2g}: leave layers out by `where`, or allow more"
        )
    return replace(plan, movement=found)


def convert(
    model: nn.Module,
    to: str | ToLayer,
    example_or_batches: Any = None,
    *,
    where: Where | None = None,
    tolerance: float | None = None,
    inputs: Inputs | None = None,
    missing_ok: bool = False,
    **options: Any,
) -> nn.Module:
    """Return a copy of `model` whose batch norms are of the kind `to`, in place of what they were.

    `to` is "torch", "bnkit", "sync", "ghost", "renorm", "masked", "accumulated", "domains",
    "frozen", "group" or "instance", with the options of that kind as keywords, or a callable that
    gets a layer of the copy and returns what is to be in its place. Batch norms of every kind are
    taken, torch.nn.SyncBatchNorm and frozen ones of other libraries too; group and instance norms
    where `where(path, layer)` chooses them. A layer keeps its identity: parameters, buffers, hooks,
    attributes, mode, dtype, device, the places in which it is, and the activation after it. What
    its class does beyond these would be lost, so a class that does more stays, as a trial shows,
    and `plan_conversion` says so. "torch" is the way back from `accelerate`, too: an activation
    becomes a module of its own, in the place that it came from, else behind the batch norm in a
    Sequential, whose keys are then new; a layer that is given a residual on the example stays.

    All but the last two kinds compute the same in eval mode; with an example (a tensor, a tuple of
    positional or a dict of keyword arguments) that is proven on it, within `tolerance` (by default
    1e-4 in float32) in its dtype. "group" (`num_groups`, by default for each layer the largest
    number up to 32 that divides its channels and leaves two in a group) and "instance" compute
    something else: they need mini-batches, as `bnkit.batches.calls_of` takes them, on which weight
    and bias are set so that each channel has the mean and the standard deviation that it had, and
    `plan_conversion` says how far the output moves. So do batch norms made of them. (An "instance"
    with `track_running_stats=True` is a batch norm in eval mode.) "sync" is collective: where
    torch.distributed is initialised, all ranks call it, and unless `process_group` is given it
    makes a group in which a rank waits `timeout=300` seconds at most.

    `model` stays as it is: make the optimizer for the copy afterwards. Frozen layers have buffers
    for parameters; thawed by another kind they train as they did before. Raises SurgeryError where
    nothing can be converted, for channels that groups do not divide, and where the copy computes
    something else; ExampleError if the model fails on the example; ValueError and TypeError for
    wrong arguments. With `missing_ok` a model in which nothing can be converted comes back as a
    copy, as pipelines want it. Without an example, layers for inputs of any rank take that of the
    weight layer before them.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    >>> ghost = convert(model, "ghost", torch.randn(2, 4), virtual_batch_size=16)
    >>> optimizer = torch.optim.SGD(ghost.parameters(), lr=0.1)
    >>> ghost[1].virtual_batch_size, type(convert(ghost, "torch")[1]).__name__
    (16, 'BatchNorm1d')
    """
    plan = plan_conversion(
        model, to, example_or_batches, where=where, tolerance=tolerance, inputs=inputs, **options
    )
    nothing = not plan.edits and all(left.why != ALREADY for left in plan.left_alone)
    if nothing and not missing_ok:
        raise SurgeryError(plan.why_nothing("converted", where=where, planner="plan_conversion"))
    return plan.apply(model)


def plan_conversion(
    model: nn.Module,
    to: str | ToLayer,
    example_or_batches: Any = None,
    *,
    where: Where | None = None,
    tolerance: float | None = None,
    inputs: Inputs | None = None,
    **options: Any,
) -> Conversion:
    """Return what `convert` would do to each layer, what it would leave alone and why.

    Its `proof` or its `movement` says how far the copy is from `model`. Raises what `convert`
    raises, but for a model in which nothing can be converted.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> batches = [torch.randn(6, 3, 8, 8) for _ in range(3)]
    >>> plan = plan_conversion(model, "group", batches, num_groups=2)
    >>> plan.edits[0].action, plan.movement.batches, plan.movement.typical < 1
    ('become GroupNorm(num_groups=2)', 3, True)
    """
    trial = duplicate(model)
    given = Given(model, example_or_batches, inputs)
    if not isinstance(to, str):
        _refuse_options(to, options)
        return _plan_by_callable(given, trial, to, where, tolerance)
    timeout = options.pop("timeout", None) if to == "sync" else None
    target = Target(find_kind(to), options)
    target.kind.check(options)
    _check_timeout(timeout, options)
    return _plan_by_name(given, trial, target, timeout, where, tolerance)


@dataclass(frozen=True)
class Recasting:
    """What a layer is to become, with the options of that kind, and how it is called."""

    to: str | ToLayer
    options: Mapping[str, Any]
    rank: int | None = None
    residual: bool = False


@operation
@showing(parameters_of(Recasting))
def convert_layer(
    model: nn.Module,
    layer: str,
    *,
    values: Mapping[str, Tensor] | None = None,
    **recasting: Any,
) -> None:
    """Make the layer of `model` at this path one of the kind `to`, in place; or what `to` returns.

    `options` are those of the kind, `rank` is the number of dimensions beside batch and channels,
    where the layer's class does not say it, and `residual` whether the layer is called with
    something to add. `values` are what calibration found for the layer's parameters and buffers.
    Raises ValueError for a kind or an option that cannot be, and where `rank` is needed.

    >>> model = nn.Sequential(nn.BatchNorm1d(4))
    >>> convert_layer(model, "0", to="ghost", options={"virtual_batch_size": 2})
    >>> model[0].virtual_batch_size
    2
    """
    given = Recasting(**recasting)
    if not isinstance(given.to, str):
        _put_what_is_made(model, layer, given.to)
        return
    kind = find_kind(given.to)
    kind.check(given.options)
    if given.rank not in {None, 1, 2, 3}:
        raise ValueError(f"`rank` is {given.rank!r}: pass 1, 2 or 3")
    layer = path_of_norm(model, layer)
    module: Any = model.get_submodule(layer)
    found = given.rank or rank_of(module, None) or (1 if kind.family == "group" else None)
    if found is None:
        raise ValueError(
            f"`rank` is None, and the class of layer '{layer}' ({type(module).__name__}) does not "
            f"say for how many dimensions it is: pass 1, 2 or 3"
        )
    like = next(model.parameters(), None)
    recast(module, kind, found, given.options, like=like)
    around = model.get_submodule(layer.rpartition(".")[0])
    if given.residual and not kind.takes_residual and type(around) is not ActivatedNorm:
        enclose(module)
    if kind.name == "sync" and layer:
        module.sync_name = layer
    write_values(model, path_of_norm(model, layer), values=values)


@operation
def release_activation(model: nn.Module, layer: str) -> None:
    """Make the `ActivatedNorm` at this path what is in it, in place, and its activation a module.

    That goes to where it was a module before; without such a place, behind it in a Sequential.

    >>> import bnkit
    >>> model = nn.Sequential(bnkit.BatchNorm1d(4, activation="tanh"))
    >>> release_activation(model, "0")
    >>> type(model[0]).__name__, model[0][1]
    ('Sequential', Tanh())
    """
    module: Any = model.get_submodule(layer)
    place = _place_of(model, module)
    if place is not None:
        replace_module(model, place, module.came_from[1])
    if place is not None or module.activation is None:
        disclose(module, module.norm)
    else:
        disclose(module, nn.Sequential(module.norm, activation_module(module.activation)))


def _place_of(model: nn.Module, layer: ActivatedNorm) -> str | None:
    """Return the path of what stands where the layer's activation was, None without one."""
    there = None if layer.came_from is None else layer.came_from[0]
    return next((path for path, module in model.named_modules() if module is there), None)


def _releases(model: nn.Module, able: Iterable[tuple[str, nn.Module]]) -> list[Edit]:
    """Return the edits that make the activations of these layers modules."""
    found = []
    for path, _ in able:
        outer, _, name = path.rpartition(".")
        around = model.get_submodule(outer)
        if name != "norm" or type(around) is not ActivatedNorm:
            continue
        place = _place_of(model, around)
        if place is not None or around.activation is None:
            action, why = "become what is in it", "the same keys"
        else:
            action, why = f"become Sequential, with {around.activation}", "keys with '.0' in them"
        action = action if place is None else f"give {around.activation} back to '{place}'"
        found.append(Edit(outer, "ActivatedNorm", action, why, "release_activation", {}))
    return found


def _edit(path: str, layer: nn.Module, target: Target, use: Use | None) -> Edit:
    found = target.options_for(layer).items()
    options = {name: [*v] if isinstance(v, tuple) else v for name, v in found}  # as JSON has them
    shared: dict[str, Any] = {
        "options": options,
        "to": target.kind.name,
        "rank": rank_of(layer, use),
        "residual": use is not None and use.residual,
    }
    edit = Edit(path, type(layer).__name__, "", _why(layer, target), "convert_layer", shared)
    named = edit.structure["options"]
    found_for_layer = ["num_groups"] if target.kind.name == "group" else []
    told = dict.fromkeys([*target.options, *found_for_layer])
    given = ", ".join(f"{name}={named[name]!r}" for name in told if name in named)
    return replace(edit, action=f"({given})" if given else "")


def _why(layer: nn.Module, target: Target) -> str:
    if not is_equivalent(layer, target):
        return "calibrated: each channel keeps its mean and standard deviation"
    lost = _dropped(layer, target)
    return "the same function in eval mode" + (
        f"; {' and '.join(lost)} are dropped" if lost else ""
    )


def _dropped(layer: nn.Module, target: Target) -> list[str]:
    """Return what domains have for themselves, and the new layer has no place for."""
    if not isinstance(layer, DomainBatchNorm):
        return []
    options = target.options_for(layer)
    kept = {layer.domain, *options.get("domains", ())}
    keeping = {"the statistics": kept}
    if layer.affine == "each":
        keeping["weight and bias"] = kept if options.get("affine") == "each" else {layer.domain}
    gone = {
        what: ", ".join(repr(name) for name in layer.domains if name not in stay)
        for what, stay in keeping.items()
    }
    return [f"{what} of {names}" for what, names in gone.items() if names]


def _plan_by_name(
    given: Given,
    trial: nn.Module,
    target: Target,
    timeout: float | None,
    where: Where | None,
    tolerance: float | None,
) -> Conversion:
    model = given.model
    chosen, rest = choose(model, where, target, timeout)
    calibrating = any(not is_equivalent(layer, target) for _, layer in chosen)
    example = given.first_of_many(target.kind.name) if calibrating else given.example()
    nothing_run = uses_without_example(model), (), None
    uses, functions, before = nothing_run if example is None else uses_of(model, example)
    able, unable = part(chosen, target, uses)
    target = _with_group(target, timeout) if able else target
    edits = [_edit(path, layer, target, uses.get(path)) for path, layer in able]
    left_alone = in_order_of(model, [*rest, *unable, *functions])
    releases = _releases(model, able) if target.kind.name == "torch" else []
    plan = Conversion((*_named(edits, trial), *releases), left_alone)
    others = [path for path, layer in able if not is_equivalent(layer, target)]
    if others:
        plan = _calibrated(model, plan, others, given.calls)
        return _moved(model, plan, given.batches(), tolerance=tolerance)
    if example is None or not edits:
        return plan
    return plan.verified(model, example, before=before, tolerance=tolerance)


def _plan_by_callable(
    given: Given,
    trial: nn.Module,
    to: ToLayer,
    where: Where | None,
    tolerance: float | None,
) -> Conversion:
    name = getattr(to, "__qualname__", type(to).__qualname__)
    options = {"to": to, "options": {}}
    chosen, rest = choose(given.model, where)
    edits = [
        Edit(path, type(layer).__name__, "", f"`{name}` made it", "convert_layer", options)
        for path, layer in chosen
    ]
    plan = Conversion(_named(edits, trial), tuple(rest))
    if given.data is None or not edits:
        return plan
    return _moved(given.model, plan, given.examples(), tolerance=tolerance)


# --- conversion by a callable of the user


def _refuse_options(to: Any, options: Iterable[str]) -> None:
    if not callable(to):
        raise TypeError(f"`to` is a {type(to).__name__}: pass the name of a kind, or a callable")
    for name in options:
        raise TypeError(
            f"`{name}` is an option of kinds that are called by name, and `to` is a callable: "
            f"bind it to that, as by functools.partial"
        )


def _put_what_is_made(model: nn.Module, layer: str, to: ToLayer) -> None:
    old = model.get_submodule(layer)
    new = to(old)
    if not isinstance(new, nn.Module):
        raise TypeError(
            f"`to` returned a {type(new).__name__} for layer '{layer}' ({type(old).__name__}): it "
            f"must return a module"
        )
    if new is not old:
        replace_module(model, layer, new)


# --- the process group of layers that become synchronised


_TIMEOUT = 300.0  # seconds that a rank waits for another


def _check_timeout(timeout: float | None, options: Mapping[str, Any]) -> None:
    if timeout is None:
        return
    if "process_group" in options:
        raise ValueError(
            f"`timeout` is {timeout} and `process_group` is given, which has a limit of its own: "
            f"pass one of them, or make_group({timeout}) as the group"
        )
    if not is_distributed():
        raise ValueError(
            f"`timeout` is {timeout}, and torch.distributed is not initialised, so there is no "
            f"group that it would be the limit of: initialise it first"
        )


def _with_group(target: Target, timeout: float | None) -> Target:
    """Return the target with a new group, where layers are to meet other ranks without one."""
    if target.kind.name != "sync" or "process_group" in target.options or not is_distributed():
        return target
    group = make_group(_TIMEOUT if timeout is None else timeout)
    return replace(target, options={**target.options, "process_group": group})
