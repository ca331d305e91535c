"""`Place`: one call of a batch norm: of a layer, of a function or by its owner; what it reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnkit.behaviour import has_known_forward
from bnkit.dataflow import Call, Dataflow, Value
from bnkit.diagnosis.evidence import Evidence, Norm, once
from bnkit.norms import why_same_in_both_modes
from bnkit.roles import Role, is_batch_norm
from bnkit.surgery.normalized import NormalizedOutput
from bnkit.surgery.segment import role_of

Makers = Mapping[Value, Call]


@dataclass(frozen=True, eq=False)
class Chain:
    """What leads to a value: the call at its `start`, and the `passages` from there, in order.

    Each passage reads one value only. `start` is None for an input of the model. `alone` says
    whether nothing else reads any of the values on the way, and none leaves the model.
    """

    start: Call | None
    passages: tuple[Call, ...]
    alone: bool


@dataclass(frozen=True, eq=False)
class Place:
    """One call of a batch norm in the dataflow of training.

    `path` is that of the batch norm; for a function, whose `norm` is None, of the module in whose
    forward it is called. `value` is what it normalises, None where its owner makes that itself.
    `trains` says whether it normalises by the mini-batch in training.
    """

    path: str
    call: Call
    norm: Norm | None
    value: Value | None
    trains: bool


@once
def places(evidence: Evidence) -> tuple[Place, ...]:
    """Return every call of a batch norm in the order of the calls; none without a dataflow."""
    return tuple(_places(evidence))


def _places(evidence: Evidence) -> Iterator[Place]:
    flow = evidence.trained_flow
    if flow is None:
        return
    owners = {
        call.index: norm
        for norm in evidence.norms
        for call in (norm.calls if evidence.training_flow is None else norm.training_calls)
    }
    for call in flow.calls:
        norm = owners.get(call.index)
        if norm is not None:
            yield _of_layer(evidence, call, norm)
        elif call.module is None and is_functional_batch_norm(call):
            trains = evidence.training_flow is None or is_told_to_train(call)
            yield Place(call.scope, call, None, normalised_by(call), trains)


def _of_layer(evidence: Evidence, call: Call, norm: Norm) -> Place:
    own = isinstance(call.module, NormalizedOutput)
    trains = normalises_by_batch(evidence, norm)
    return Place(norm.path, call, norm, None if own else normalised_by(call), trains)


def is_functional_batch_norm(call: Call) -> bool:
    """Return whether this call of a torch function is a batch norm."""
    return role_of(call) is Role.NORMALISATION and is_batch_norm(call.name)


def is_told_to_train(call: Call) -> bool:
    """Return whether a functional batch norm is given training=True, or no running statistics."""
    position = 5  # of `training` in torch.nn.functional.batch_norm and torch.batch_norm
    given = call.arguments[position] if len(call.arguments) > position else False
    return bool(call.keywords.get("training", given))


def normalised_by(call: Call) -> Value | None:
    """Return the value that a batch norm's call normalises."""
    first = call.arguments[0] if call.arguments else call.keywords.get("input")
    return first if isinstance(first, Value) else None


def normalises_by_batch(evidence: Evidence, norm: Norm) -> bool:
    """Return whether training normalises by the mini-batch in this layer.

    A model in eval mode is taken as if all of it were put in training mode.
    """
    return _normalising_by_batch(evidence)[norm.path]


@once
def _normalising_by_batch(evidence: Evidence) -> Mapping[str, bool]:
    def by_batch(module: Any) -> bool:
        without = has_known_forward(module) and module.running_mean is None
        return without or why_same_in_both_modes(evidence.model, module) is None

    return {norm.path: by_batch(norm.module) for norm in evidence.norms}


def makers_of(flow: Dataflow) -> Makers:
    """Return the call that made each value."""
    return {value: call for call in flow.calls for value in call.outputs}


def chain_to(flow: Dataflow, makers: Makers, place: Place) -> Chain:
    """Return what leads to the input of this batch norm, through passages of one input."""
    if place.value is None:
        return Chain(place.call, (), alone=True)
    value, passages, alone = place.value, list[Call](), True
    while True:
        alone &= len(flow.readers(value)) == 1 and value not in flow.outputs
        maker = makers.get(value)
        if maker is None or role_of(maker) is not Role.PASSTHROUGH or len(maker.inputs) != 1:
            return Chain(maker, tuple(reversed(passages)), alone)
        passages.append(maker)
        (value,) = maker.inputs


@once
def chained(evidence: Evidence) -> list[tuple[Dataflow, Place, Chain]]:
    """Return every call of a batch norm with what leads to its input."""
    flow = evidence.trained_flow
    if flow is None:
        return []
    makers = makers_of(flow)
    return [(flow, place, chain_to(flow, makers, place)) for place in places(evidence)]


@once
def chains_to_norms(evidence: Evidence) -> Mapping[str, Sequence[tuple[Dataflow, Place, Chain]]]:
    """Return `chained` by the path of the batch norm; functions are left out."""
    found: dict[str, list[tuple[Dataflow, Place, Chain]]] = {}
    for each in chained(evidence):
        if each[1].norm is not None:
            found.setdefault(each[1].norm.path, []).append(each)
    return found


def layer_of(call: Call) -> str:
    """Return the path of the layer that was called, for a function of that which called it."""
    return call.scope if call.module is None else call.name
