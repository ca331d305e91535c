"""The segment of a network after a layer: what its output meets before the next weight layer."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from bnkit.dataflow import Call, Dataflow
from bnkit.roles import Role, gives_answers, is_batch_norm, role_of_function, role_of_module
from bnkit.surgery.normalized import NormalizedInput, NormalizedOutput

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
class Segment:
    """What the output of one call reaches, looking through passages, each call once.

    `normalisations` are those that read it, and batch norms of what its activations make.
    `leaves` says whether it leaves the model directly or as an answer (through sigmoid, tanh or
    softmax); `keeps_axes`, for each activation, whether features stay on their axis up to it.
    """

    activations: list[Call] = field(default_factory=list)
    normalisations: list[Call] = field(default_factory=list)
    others: list[Call] = field(default_factory=list)
    leaves: bool = False
    keeps_axes: dict[int, bool] = field(default_factory=dict)


def segment_after(flow: Dataflow, start: Call) -> Segment:
    """Return the segment that begins with what `start` made."""
    segment, keeps = Segment(leaves=flow.leaves(start)), {start.index: True}
    for call, reader in _readers_beyond(flow, start):
        match role_of(reader):
            case Role.PASSTHROUGH:
                segment.leaves |= flow.leaves(reader)
                keeps[reader.index] = keeps[call.index] and not _moves_axes(reader)
            case Role.ACTIVATION:
                segment.activations.append(reader)
                segment.keeps_axes[reader.index] = keeps[call.index]
                segment.normalisations += _batch_norms_of(flow, reader)
                segment.leaves |= _is_answer(flow, reader)
            case Role.NORMALISATION:
                segment.normalisations.append(reader)
            case _:
                segment.others.append(reader)
    return segment


def _readers_beyond(flow: Dataflow, start: Call) -> Iterator[tuple[Call, Call]]:
    """Yield (call, reader) from `start` on through passages: each reader once, nearest first."""
    seen, waiting = {start.index}, deque([start])
    while waiting:
        call = waiting.popleft()
        for reader in flow.following(call):
            if reader.index not in seen:
                seen.add(reader.index)
                yield call, reader
                if role_of(reader) is Role.PASSTHROUGH:
                    waiting.append(reader)


def _batch_norms_of(flow: Dataflow, activation: Call) -> Iterator[Call]:
    """Yield what batch-normalises the output of `activation`: itself, a layer, a layer's input."""
    if isinstance(activation.module, NormalizedOutput):
        yield activation
    for _, reader in _readers_beyond(flow, activation):
        if isinstance(reader.module, NormalizedInput) or (
            role_of(reader) is Role.NORMALISATION and is_batch_norm(_spelling(reader))
        ):
            yield reader


def _is_answer(flow: Dataflow, activation: Call) -> bool:
    """Return whether `activation` ends the network: its result leaves, perhaps by passages."""
    if not gives_answers(_spelling(activation)):
        return False
    beyond = (reader for _, reader in _readers_beyond(flow, activation))
    return flow.leaves(activation) or any(
        flow.leaves(reader) for reader in beyond if role_of(reader) is Role.PASSTHROUGH
    )


def next_weights(flow: Dataflow, start: Call) -> Call | None:
    """Return the weight layer that alone reads what `start` made, perhaps through passages.

    It must get the value as its first argument and no other.
    """
    call = start
    while not flow.leaves(call):
        readers = list(flow.following(call))
        if len(readers) != 1:
            return None
        (call,) = readers
        match role_of(call):
            case Role.WEIGHTS:
                first = call.arguments[0] if call.arguments else call.keywords.get("input")
                return call if call.inputs == (first,) else None
            case Role.PASSTHROUGH if len(call.inputs) == 1:
                continue
            case _:
                return None
    return None


def _spelling(call: Call) -> nn.Module | str:
    return call.name if call.module is None else call.module


def _moves_axes(call: Call) -> bool:
    name = call.name if call.module is None else type(call.module).__name__
    return name.rstrip("_") in _MOVE_AXES or name in _MOVE_AXES
