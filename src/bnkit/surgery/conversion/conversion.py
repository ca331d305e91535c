"""`convert`: the normalisation layers of a model become layers of another kind, there and back."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bnkit.batches import Inputs
from bnkit.dataflow import duplicate
from bnkit.layers.domains import DomainBatchNorm
from bnkit.surgery.conversion.callables import (
    ToLayer,
    choose_for_callable,
    put_what_is_made,
    refuse_options,
)
from bnkit.surgery.conversion.choosing import ALREADY, choose, part
from bnkit.surgery.conversion.given import Given
from bnkit.surgery.conversion.groups import check_timeout, with_group
from bnkit.surgery.conversion.kinds import find_kind
from bnkit.surgery.conversion.recasting import recast
from bnkit.surgery.conversion.record import Conversion, calibrated, moved, named, proven
from bnkit.surgery.conversion.survey import Target, Use, Where, is_equivalent, rank_of, uses_of
from bnkit.surgery.folding.folding import in_order_of, nothing_to_do
from bnkit.surgery.operations import Edit, operation, write_values
from bnkit.surgery.promise import SurgeryError


def convert(
    model: nn.Module,
    to: str | ToLayer,
    example_or_batches: Any = None,
    *,
    where: Where | None = None,
    tolerance: float | None = None,
    inputs: Inputs | None = None,
    **options: Any,
) -> nn.Module:
    """Return a copy of `model` whose batch norms are of the kind `to`, in place of what they were.

    `to` is "torch", "bnkit", "sync", "ghost", "renorm", "masked", "accumulated", "domains",
    "frozen", "group" or "instance", with the options of that kind as keywords, or a callable that
    gets a layer of the copy and returns what is to be in its place. Batch norms of every kind are
    taken, torch.nn.SyncBatchNorm and frozen ones of other libraries too; group and instance norms
    where `where(path, layer)` chooses them. A layer keeps its identity: parameters, buffers, hooks,
    attributes, mode, dtype, device, the places in which it is, and its activation, also as torch's,
    which is then followed by it (`FinishedBatchNorm2d`). What its class does beyond these would be
    lost, so a class with a forward of its own stays, and `plan_conversion` says so.

    All but the last two kinds compute the same in eval mode; with an example (a tensor, a tuple of
    positional or a dict of keyword arguments) that is proven on it, within `tolerance`, as
    `prove_same_function` says. "group" (`num_groups=32`) and "instance" compute something else:
    they need mini-batches, as `bnkit.batches.calls_of` takes them, on which weight and bias are
    set so that each channel has the mean and the standard deviation that it had, and
    `plan_conversion` says how far the output moves. So do batch norms made of them. (An "instance"
    with `track_running_stats=True` is a batch norm in eval mode.) "sync" is collective: where
    torch.distributed is initialised, all ranks call it, and unless `process_group` is given it
    makes a group in which a rank waits `timeout=300` seconds at most.

    `model` stays as it is: make the optimizer for the copy afterwards. Frozen layers have buffers
    for parameters; thawed by another kind they train as they did before. Raises SurgeryError where
    nothing can be converted, for channels that groups do not divide, and where the copy computes
    something else; ExampleError if the model fails on the example; ValueError and TypeError for
    wrong arguments.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    >>> ghost = convert(model, "ghost", torch.randn(2, 4), virtual_batch_size=16)
    >>> optimizer = torch.optim.SGD(ghost.parameters(), lr=0.1)
    >>> ghost[1].virtual_batch_size, type(convert(ghost, "torch")[1]).__name__
    (16, 'BatchNorm1d')
    """
    plan = plan_conversion(
        model,
        to,
        example_or_batches,
        where=where,
        tolerance=tolerance,
        inputs=inputs,
        **options,
    )
    if not plan.edits and all(left.why != ALREADY for left in plan.left_alone):
        raise SurgeryError(nothing_to_do("converted", "plan_conversion", plan, where))
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

    Its `proof` says how far the copy is from `model` on the example, where it is to be the same;
    its `movement` how far the output moves, where it is not. Raises what `convert` raises, but for
    a model in which nothing can be converted.

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
        refuse_options(to, options)
        return _plan_by_callable(given, trial, to, where, tolerance)
    timeout = options.pop("timeout", None) if to == "sync" else None
    target = Target(find_kind(to), options)
    target.kind.check(options)
    check_timeout(timeout, options)
    return _plan_by_name(given, trial, target, timeout, where, tolerance)


@operation
def convert_layer(
    model: nn.Module,
    layer: str,
    *,
    to: str | ToLayer,
    options: Mapping[str, Any],
    rank: int | None = None,
    residual: bool = False,
    values: Mapping[str, Tensor] | None = None,
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
    if not isinstance(to, str):
        put_what_is_made(model, layer, to)
        return
    kind = find_kind(to)
    kind.check(options)
    module: Any = model.get_submodule(layer)
    found = rank or rank_of(module, None) or (1 if kind.family == "group" else None)
    if found is None:
        raise ValueError(
            f"`rank` is None, and the class of layer '{layer}' ({type(module).__name__}) does not "
            f"say for how many dimensions it is: pass 1, 2 or 3"
        )
    like = next(model.parameters(), None)
    recast(module, kind, found, options, residual=residual, like=like)
    if kind.name == "sync" and layer:
        module.sync_name = layer
    write_values(model, layer, values=values)


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
    given = ", ".join(f"{name}={named[name]!r}" for name in target.options if name in named)
    return replace(edit, action=f"({given})" if given else "")


def _why(layer: nn.Module, target: Target) -> str:
    if not is_equivalent(layer, target):
        return "calibrated: each channel keeps its mean and standard deviation"
    lost = _dropped_domains(layer, target)
    return "the same function in eval mode" + (
        f"; the statistics of {', '.join(map(repr, lost))} are dropped" if lost else ""
    )


def _dropped_domains(layer: nn.Module, target: Target) -> list[str]:
    if not isinstance(layer, DomainBatchNorm):
        return []
    kept = {layer.domain, *target.options_for(layer).get("domains", ())}
    return [name for name in layer.domains if name not in kept]


def _plan_by_name(
    given: Given,
    trial: nn.Module,
    target: Target,
    timeout: float | None,
    where: Where | None,
    tolerance: float | None,
) -> Conversion:
    model = given.model
    chosen, rest = choose(model, target, timeout, where)
    calibrating = any(not is_equivalent(layer, target) for _, layer in chosen)
    example = given.first_of_many(target.kind.name) if calibrating else given.example()
    uses, functions, before = ({}, (), None) if example is None else uses_of(model, example)
    able, unable = part(chosen, target, uses)
    target = with_group(target, timeout) if able else target
    edits = [_edit(path, layer, target, uses.get(path)) for path, layer in able]
    left_alone = in_order_of(model, [*rest, *unable, *functions])
    plan = Conversion(named(edits, trial), left_alone)
    others = [path for path, layer in able if not is_equivalent(layer, target)]
    if others:
        plan = calibrated(model, plan, others, given.calls)
        return moved(model, plan, given.batches(), tolerance=tolerance)
    if example is None or not edits:
        return plan
    return proven(model, plan, example, before, tolerance=tolerance)


def _plan_by_callable(
    given: Given,
    trial: nn.Module,
    to: ToLayer,
    where: Where | None,
    tolerance: float | None,
) -> Conversion:
    edits, rest = choose_for_callable(given.model, to, where)
    plan = Conversion(named(edits, trial), tuple(rest))
    if given.data is None or not edits:
        return plan
    return moved(given.model, plan, given.examples(), tolerance=tolerance)
