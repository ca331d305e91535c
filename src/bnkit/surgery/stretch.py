"""The stretch of a network after a layer: what its output meets before the next weight layer."""

from collections import deque
from dataclasses import dataclass, field

from bnkit.dataflow import Call, Dataflow
from bnkit.roles import Role, gives_answers, role_of_function, role_of_module

# Passages after which a feature may lie on another axis.
_MOVE_AXES = frozenset(
    """
    T H mT mH t adjoint transpose swapaxes swapdims permute movedim moveaxis view view_as reshape
    reshape_as flatten unflatten ravel squeeze unsqueeze fold unfold stack __getitem__ select
    as_strided unbind Flatten Unflatten Fold Unfold
    """.split()
)


def role_of(call: Call) -> Role:
    """Return the part that this call plays."""
    if call.module is not None:
        return role_of_module(call.module)
    return role_of_function(call.name, call.arguments, call.keywords)


@dataclass
class Stretch:
    """What the output of one call reaches, looking through passages, each call once.

    `leaves` says whether it leaves the model directly or as an answer (through sigmoid, tanh or
    softmax); `keeps_axes`, for each activation, whether features stay on their axis up to it.
    """

    activations: list[Call] = field(default_factory=list)
    normalisations: list[Call] = field(default_factory=list)
    others: list[Call] = field(default_factory=list)
    leaves: bool = False
    keeps_axes: dict[int, bool] = field(default_factory=dict)


def stretch_after(flow: Dataflow, start: Call) -> Stretch:
    """Return the stretch that begins with what `start` made."""
    stretch, seen = Stretch(leaves=flow.leaves(start)), {start.index}
    waiting = deque([(start, True)])
    while waiting:
        call, keeps = waiting.popleft()
        for reader in flow.following(call):
            if reader.index in seen:
                continue
            seen.add(reader.index)
            match role_of(reader):
                case Role.PASSAGE:
                    stretch.leaves |= flow.leaves(reader)
                    waiting.append((reader, keeps and not _moves_axes(reader)))
                case Role.ACTIVATION:
                    stretch.activations.append(reader)
                    stretch.keeps_axes[reader.index] = keeps
                    stretch.leaves |= _is_answer(flow, reader)
                case Role.NORMALISATION:
                    stretch.normalisations.append(reader)
                case _:
                    stretch.others.append(reader)
    return stretch


def next_weights(flow: Dataflow, start: Call) -> Call | None:
    """Return the weight layer that alone reads what `start` made, perhaps through passages."""
    call = start
    while not flow.leaves(call):
        readers = list(flow.following(call))
        if len(readers) != 1:
            return None
        (call,) = readers
        match role_of(call):
            case Role.WEIGHTS:
                return call if len(call.inputs) == 1 else None
            case Role.PASSAGE if len(call.inputs) == 1:
                continue
            case _:
                return None
    return None


def _moves_axes(call: Call) -> bool:
    name = call.name if call.module is None else type(call.module).__name__
    return name.rstrip("_") in _MOVE_AXES or name in _MOVE_AXES


def _is_answer(flow: Dataflow, activation: Call) -> bool:
    name = activation.name if activation.module is None else type(activation.module).__name__
    return gives_answers(name) and _only_leaves(flow, activation)


def _only_leaves(flow: Dataflow, call: Call) -> bool:
    """Return whether what `call` made leaves the model, directly or through passages."""
    if flow.leaves(call):
        return True
    readers = flow.following(call)
    return any(_only_leaves(flow, r) for r in readers if role_of(r) is Role.PASSAGE)
