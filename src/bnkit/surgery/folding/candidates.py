"""The batch norms of a model: where each is called, and whether its eval mode is known."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from bnkit.behaviour import activation_of, behaviour_of, has_known_forward, name_of_activation
from bnkit.dataflow import Call, Dataflow
from bnkit.internals import has_hooks
from bnkit.layers.activated import ActivatedNorm
from bnkit.layers.batch_norm import GuardedBatchNorm
from bnkit.layers.domains import DomainBatchNorm
from bnkit.roles import Role, is_batch_norm, role_of_function
from bnkit.surgery.normalized import Normalized
from bnkit.surgery.plan import LeftAlone


@dataclass(frozen=True, eq=False)
class Candidate:
    """One batch norm of a model: a layer of its own, or the child of a layer that owns it.

    `owner` is the path of the layer that owns it, None for others; `calls` are those of either.
    `followed_by` is the activation after it inside such a layer, None for none.
    """

    path: str
    module: nn.Module
    owner: str | None
    calls: tuple[Call, ...]
    followed_by: str | None = None

    @property
    def kind(self) -> str:
        """The name of the class."""
        return type(self.module).__name__

    @cached_property
    def activation(self) -> str | None:
        """The name of the activation in which the batch norm ends, None for none."""
        ending = activation_of(self.module)
        if ending is None:
            return self.followed_by
        return name_of_activation(ending) or type(ending).__name__

    @property
    def domain(self) -> str:
        """The name of the domain whose statistics it has now, "" where there is one set only."""
        return self.module.domain if isinstance(self.module, DomainBatchNorm) else ""

    @property
    def adds_residual(self) -> bool:
        """Whether a call of the batch norm is given something to add."""
        takes_one = isinstance(self.module, GuardedBatchNorm) and self.owner is None
        return takes_one and any(len(arguments_of(call)) > 1 for call in self.calls)


def arguments_of(call: Call) -> list[Any]:
    """Return what a batch norm, which takes an input and perhaps a residual, is called with."""
    return [part for part in (*call.arguments, *call.keywords.values()) if part is not None]


def find_candidates(model: nn.Module, flow: Dataflow) -> Iterator[Candidate]:
    """Yield every batch norm of `model`, in the order of its layers."""
    owners: dict[int, tuple[str | None, str | None]] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, Normalized):
            owned: Any = layer.batchnorm
            ends = type(owned) is ActivatedNorm
            owners[id(owned.norm if ends else owned)] = path, owned.activation if ends else None
    for path, module in model.named_modules():
        if is_batch_norm(module):
            owner, activation = owners.get(id(module), (None, None))
            calls = tuple(flow.calls_of(path if owner is None else owner))
            yield Candidate(path, module, owner, calls, activation)


def functional_batch_norms(flow: Dataflow) -> Iterator[LeftAlone]:
    """Yield the batch norms that are torch functions, which cannot be replaced by a module."""
    for call in flow.calls:
        if call.module is not None or not is_batch_norm(call.name):
            continue
        role = role_of_function(call.name, call.arguments, call.keywords)
        if role is Role.NORMALISATION:
            yield LeftAlone(str(call), "function", "called as a function: no layer can be replaced")


def objection_to_batch_norm(candidate: Candidate, flow: Dataflow) -> str | None:
    """Return why what this batch norm does in eval mode is unknown or not to be kept, or None."""
    if not candidate.path:
        return "it is the model itself: only layers inside it can be replaced"
    unknown = {name for call in candidate.calls for name in call.keywords} - {"input", "residual"}
    if unknown and candidate.owner is None:
        return f"called with the keyword {min(unknown)!r}, which no other layer knows"
    readers = flow.calls_reading(candidate.path)
    if readers:
        use = f"{readers[0]} reads its parameters or statistics"
        return _objection_to_instance(candidate.module) or use
    inputs = [v for call in candidate.calls for v in call.inputs] if not candidate.owner else []
    return objection_to_eval_mode(candidate.module, flow.shapes[inputs[0]] if inputs else ())


def objection_to_eval_mode(module: nn.Module, shape: tuple[int, ...] = ()) -> str | None:
    """Return why this batch norm is not an affine map in eval mode, perhaps with an activation.

    None where it is one: its class says it, or a trial, on an input of this `shape`, shows it.

    >>> objection_to_eval_mode(nn.BatchNorm1d(2, track_running_stats=False))
    'it has no running statistics: even in eval mode it uses those of the mini-batch'
    """
    return _objection_to_instance(module) or behaviour_of(module, shape=shape).why_not_affine


def _objection_to_instance(module: nn.Module) -> str | None:
    if has_hooks(module):
        return "hooks are registered on it, which see or change what it gets and gives"
    if "forward" in vars(module):
        return "its forward is set on the instance"
    if hasattr(module, "parametrizations"):
        return "its weight or bias is computed (weight norm, pruning and the like)"
    if isinstance(module, GuardedBatchNorm) and not has_known_forward(module):
        return "its class has a forward of its own"  # which takes more than an input
    return None
