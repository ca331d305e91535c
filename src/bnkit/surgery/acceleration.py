"""`accelerate`: the same model with bnkit's batch norms, fused with the activations after them."""

from contextlib import suppress
from typing import Any

from torch import nn

from bnkit.behaviour import behaviour_of, has_known_forward
from bnkit.dataflow import Call, Dataflow, ExampleError, duplicate
from bnkit.dataflow.tracing import observe_in_its_mode
from bnkit.internals import has_hooks
from bnkit.kernels.activations import LEAKY_SLOPE
from bnkit.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.layers.activated import enclose
from bnkit.norms import NOT_CHOSEN, Where, batch_norms
from bnkit.observation import set_mode
from bnkit.roles import Role
from bnkit.surgery.conversion.kinds import find_kind
from bnkit.surgery.conversion.survey import Target, Use, rank_of
from bnkit.surgery.conversion.survey import objection as objection_to_kind
from bnkit.surgery.normalized import NormalizedOutput
from bnkit.surgery.operations import Edit, operation, replace_module
from bnkit.surgery.plan import LeftAlone, Plan
from bnkit.surgery.segment import role_of
from bnkit.surgery.verification import Outcome, trace_itself

_KINDS = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}
_OURS = tuple(_KINDS.values())


NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}


def accelerate(
    model: nn.Module, example: Any, *, where: Where | None = None, tolerance: float | None = None
) -> nn.Module:
    """Return a copy of `model` whose batch norms are bnkit's, fused with what follows them.

    Function, gradients and state-dict keys stay the same. A batch norm of torch becomes that of
    bnkit; an activation module that alone reads its output, and is called once, is computed within
    it and becomes an Identity. Functional and shared activations stay where they are: computing
    them twice would save nothing. Arguments and errors are those of `fold`, but that a plan without
    edits is fine. The model runs on `example` in both modes. `model` stays as it is: make the
    optimizer for the copy afterwards.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> fast = accelerate(model, torch.randn(2, 3, 8, 8))
    >>> fast[1].activation, fast[2]
    ('relu', Identity())
    """
    plan = plan_acceleration(model, example, where=where, tolerance=tolerance)
    return plan.apply(model)


def plan_acceleration(
    model: nn.Module, example: Any, *, where: Where | None = None, tolerance: float | None = None
) -> Plan:
    """Return what `accelerate` would do, layer by layer, and what it would leave alone and why.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> print(plan_acceleration(model, torch.randn(2, 3, 8, 8)))  # doctest: +ELLIPSIS
     layer   kind          change                      why
    ───────────────────────────────────────────────────────────────────────────────────────
     1       BatchNorm2d   bnkit's, with relu of '2'   it alone reads what the layer makes
    Same function: error ...
    """
    plan, before = _unproven(model, example, where)  # its traced copy is gone by now
    return plan.verified(model, example, before=before, tolerance=tolerance)


def _unproven(model: nn.Module, example: Any, where: Where | None) -> tuple[Plan, Outcome]:
    flows, before = _dataflows(model, example)
    found = [_edit(flows, path, layer, where) for path, layer in batch_norms(model).layers.items()]
    plan = Plan(
        tuple(edit for edit in found if isinstance(edit, Edit)),
        tuple(left for left in found if isinstance(left, LeftAlone)),
    )
    return plan, before


def _dataflows(model: nn.Module, example: Any) -> tuple[list[Dataflow], Outcome]:
    """Return those in eval and in training mode, of which the latter may fail, and the outputs."""
    subject = duplicate(model)
    in_eval, before = trace_itself(subject, example)
    flows = [in_eval]
    with suppress(ExampleError):  # such as one value per channel, of an example of one
        flows += [observe_in_its_mode(set_mode(subject, training=True), example)]
    return flows, before


def _edit(
    flows: list[Dataflow], path: str, layer: nn.Module, where: Where | None
) -> Edit | LeftAlone:
    kind = type(layer).__name__
    objection = _objection(path, layer, where)
    if objection is not None:
        return LeftAlone(path, kind, objection)
    if type(layer) not in (*_KINDS, *_OURS):
        return _edit_of_another_class(flows, path, layer)
    activation, reason = _activation_after(flows, path, layer)
    if activation is None and isinstance(layer, _OURS):
        return LeftAlone(path, kind, f"bnkit's already, and {reason}")
    name = None if activation is None else NAMES[type(activation.module)]  # type: ignore[index]
    action = "bnkit's" if name is None else f"bnkit's, with {name} of '{activation.name}'"  # type: ignore[union-attr]
    replaced = None if activation is None else activation.name
    options = {"activation": name, "replaced": replaced}
    return Edit(path, kind, action, reason, "apply_acceleration", options)


def _edit_of_another_class(flows: list[Dataflow], path: str, layer: nn.Module) -> Edit | LeftAlone:
    """Return the edit of a layer that a trial shows to be torch's batch norm and an activation."""
    calls = ((flow, call) for flow in flows for call in flow.calls_of(path))
    use = Use([flow.shapes[call.outputs[0]] for flow, call in calls])
    objection = objection_to_kind(layer, Target(find_kind("bnkit"), {"guard": False}), use)
    if objection is not None:
        return LeftAlone(path, type(layer).__name__, objection)
    name = behaviour_of(layer).activation_name
    action = "bnkit's" if name is None else f"bnkit's, with the {name} that it ends in"
    options = {"to": "bnkit", "options": {"guard": False}, "rank": rank_of(layer, use)}
    why = "in a trial it computes what torch's batch norm does, in both modes"
    return Edit(path, type(layer).__name__, action, why, "convert_layer", options)


@operation
def apply_acceleration(
    model: nn.Module, layer: str, *, activation: str | None, replaced: str | None
) -> None:
    """Make the batch norm at `layer` bnkit's, and the module at `replaced` an Identity.

    It keeps its identity, parameters, buffers, hooks and torch's treatment of mini-batches that are
    not finite (guard=False). With an activation it is an `ActivatedNorm`, which contains the batch
    norm and knows the module that it came from.
    """
    module: Any = model.get_submodule(layer)
    if type(module) in _KINDS:
        module.__class__ = _KINDS[type(module)]
        module.guard = False
        module.begin_count()
    if activation is not None:
        enclose(module, activation)
    if replaced is not None:
        place, before = nn.Identity(), model.get_submodule(replaced)
        replace_module(model, replaced, place)
        module.came_from = place, before


def _objection(path: str, layer: nn.Module, where: Where | None) -> str | None:
    if where is not None and not where(path, layer):
        return NOT_CHOSEN
    if "forward" in vars(layer):
        return "its forward is set on the instance"
    if type(layer) in (*_KINDS, *_OURS):
        return None
    found = behaviour_of(layer)
    if has_known_forward(layer) or not (found.is_plain and found.by_batch_in_training):
        return "of a class of its own, which does not compute what torch's does in both modes"
    return None


# --- which activation a batch norm may compute as its own


def _activation_after(
    flows: list[Dataflow], path: str, layer: nn.Module
) -> tuple[Call | None, str]:
    """Return the call of the activation to fuse and why, or None and why not."""
    if has_hooks(layer, before=False):
        return None, "a hook looks at what it makes"
    # A layer that runs in one mode alone, as in a head of training, is judged by that.
    running = [flow for flow in flows if _calls_ending_in(flow, path)] or flows
    found = [_reader(flow, path) for flow in running]
    for call, reason in found:
        if call is None:
            return None, reason
    names = {call.name for call, _ in found if call is not None}
    if len(names) > 1:
        return None, f"in training mode '{found[1][0].name}' reads it instead"  # type: ignore[union-attr]
    suffix = "" if len(flows) > 1 else " (seen in eval mode: training fails on the example)"
    return found[0][0], f"it alone reads what the layer makes{suffix}"


def _reader(flow: Dataflow, path: str) -> tuple[Call | None, str]:
    calls = _calls_ending_in(flow, path)
    if len(calls) != 1:
        return None, f"called {len(calls)} times" if calls else "not called on this example"
    readers = list(flow.following(calls[0]))
    if flow.leaves(calls[0]) or len(readers) != 1:
        return None, "several read what it makes" if readers else "nothing reads what it makes"
    (reader,) = readers
    if path.endswith(".norm") and reader.scope == path.removesuffix(".norm"):
        return None, "it has an activation"
    if role_of(reader) is not Role.ACTIVATION:
        return None, f"no activation follows, but {reader}"
    return _fusible(flow, reader)


def _calls_ending_in(flow: Dataflow, path: str) -> list[Call]:
    """Return the calls that return what the batch norm at `path` makes."""
    own = list(flow.calls_of(path))
    owner, _, name = path.rpartition(".")
    if name == "batchnorm":  # inside a layer that add or insert made, which ends in it
        own += [c for c in flow.calls_of(owner) if isinstance(c.module, NormalizedOutput)]
    return own


def _fusible(flow: Dataflow, activation: Call) -> tuple[Call | None, str]:
    module = activation.module
    if module is None:
        return None, f"{activation} is not a module, and twice is no faster"
    if len(flow.calls_of(activation.name)) > 1:
        return None, f"{activation} serves several places, and twice is no faster"
    if type(module) not in NAMES or not _has_default_form(module):
        return None, f"{activation} is not one that bnkit computes"
    if has_hooks(module):
        return None, f"a hook looks at {activation}"
    return activation, ""


def _has_default_form(module: nn.Module) -> bool:
    slope = getattr(module, "negative_slope", LEAKY_SLOPE)
    return slope == LEAKY_SLOPE and getattr(module, "approximate", "none") == "none"
