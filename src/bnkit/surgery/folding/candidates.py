"""The batch norms of a model: where each is called, and whether its eval mode is known."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.dataflow import Call, Dataflow
from bnkit.internals import AnyBatchNorm, has_hooks
from bnkit.layers.batch_norm import ActivatedBatchNorm
from bnkit.layers.domains import DomainBatchNorm
from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.norms import NO_STATISTICS
from bnkit.observation import on_the_side
from bnkit.roles import Role, is_batch_norm, role_of_function
from bnkit.surgery.folding.arithmetic import affine_of
from bnkit.surgery.normalized import Normalized
from bnkit.surgery.plan import LeftAlone

_STATE = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class Candidate:
    """One batch norm of a model: a layer of its own, or the child of a layer that owns it.

    `owner` is the path of the layer that owns it, None for others; `calls` are those of either.
    """

    path: str
    module: nn.Module
    owner: str | None
    calls: tuple[Call, ...]

    @property
    def kind(self) -> str:
        """The name of the class."""
        return type(self.module).__name__

    @property
    def activation(self) -> str | None:
        """The name of the activation in which the batch norm ends, None for none."""
        return self.module.activation if isinstance(self.module, ActivatedBatchNorm) else None

    @property
    def domain(self) -> str:
        """The name of the domain whose statistics it has now, "" where there is one set only."""
        return self.module.domain if isinstance(self.module, DomainBatchNorm) else ""

    @property
    def adds_residual(self) -> bool:
        """Whether a call of the batch norm is given something to add."""
        return self.owner is None and any(len(arguments_of(call)) > 1 for call in self.calls)


def arguments_of(call: Call) -> list[Any]:
    """Return what a batch norm, which takes an input and perhaps a residual, is called with."""
    return [part for part in (*call.arguments, *call.keywords.values()) if part is not None]


def find_candidates(model: nn.Module, flow: Dataflow) -> Iterator[Candidate]:
    """Yield every batch norm of `model`, in the order of its layers."""
    owners = {
        id(layer.batchnorm): path
        for path, layer in model.named_modules()
        if isinstance(layer, Normalized)
    }
    for path, module in model.named_modules():
        if is_batch_norm(module):
            owner = owners.get(id(module))
            yield Candidate(
                path, module, owner, tuple(flow.calls_of(path if owner is None else owner))
            )


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
        return _objection_to_class(candidate.module) or use
    return objection_to_eval_mode(candidate.module)


def objection_to_eval_mode(module: nn.Module) -> str | None:
    """Return why this batch norm is not the affine map of its state in eval mode, or None.

    >>> objection_to_eval_mode(nn.BatchNorm1d(2, track_running_stats=False))
    'it has no running statistics: even in eval mode it uses those of the mini-batch'
    """
    return _objection_to_class(module) or _objection_to_state(module)


def _objection_to_class(module: nn.Module) -> str | None:
    if has_hooks(module):
        return "hooks are registered on it, which see or change what it gets and gives"
    if "forward" in vars(module):
        return "its forward is set on the instance"
    if hasattr(module, "parametrizations"):
        return "its weight or bias is computed (weight norm, pruning and the like)"
    if isinstance(module, AnyBatchNorm):
        return None if _has_known_forward(module) else "its class has a forward of its own"
    return objection_to_foreign_state(module)


def objection_to_foreign_state(module: nn.Module) -> str | None:
    """Return why the state of another library's layer does not say what it computes, or None.

    >>> objection_to_foreign_state(nn.Linear(2, 2))
    "a batch norm of another library, without 'running_mean' and 'running_var'"
    """
    held = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    missing = [name for name in _STATE if name not in held]
    if missing:
        return f"a batch norm of another library, without {' and '.join(map(repr, missing))}"
    if not all(held[name].is_floating_point() for name in _STATE):
        return "a batch norm of another library, whose state is not of real numbers"
    if not isinstance(getattr(module, "eps", None), float):
        return "a batch norm of another library, whose eps is unknown: it has no number `eps`"
    return None


def _has_known_forward(module: nn.Module) -> bool:
    kind = type(module)
    if isinstance(module, ActivatedBatchNorm):
        in_eval = type(module).normalise_by_running_statistics
        known = in_eval is ActivatedBatchNorm.normalise_by_running_statistics
        return known and kind.forward in (ActivatedBatchNorm.forward, FrozenBatchNorm.forward)
    return kind.forward in (AnyBatchNorm.forward, nn.SyncBatchNorm.forward)


def _objection_to_state(module: Any) -> str | None:
    if module.running_mean is None or module.running_var is None:
        return NO_STATISTICS
    affine = affine_of(module)
    if not all(t.isfinite().all() for t in (affine.scale, affine.center, affine.offset)):
        return "its statistics or parameters are not finite numbers, or its variance is negative"
    if not isinstance(module, AnyBatchNorm) and not computes_its_affine(module):
        return "a batch norm of another library, which computes something other than its state says"
    return None


def computes_its_affine(module: Any) -> bool:
    """Return whether a layer of another library is the affine map that its state says, by trial."""
    affine, like = affine_of(module), module.running_mean
    probe = torch.linspace(-100, 100, 4 * len(affine.scale)).to(affine.scale)
    x = probe.reshape(2, 2, 1, -1).movedim(3, 1).to(like.dtype)  # (2, C, 2, 1)
    scale, center, offset = (t[:, None, None] for t in (affine.scale, affine.center, affine.offset))
    exact = scale * (x - center) + offset
    bound = 8 * torch.finfo(like.dtype).eps ** 0.75 * (1 + (scale * x).abs() + exact.abs()).max()
    try:
        with on_the_side(module):
            y = module(x)
    except Exception:  # noqa: BLE001  whatever a layer of another library raises
        return False
    return isinstance(y, Tensor) and y.shape == x.shape and bool((y - exact).abs().max() <= bound)
