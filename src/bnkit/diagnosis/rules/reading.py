"""`readings`: batch norms as the rules on state and training read them, layers and functions alike.

A per-domain layer has a reading for each of its domains, a call of torch's function one of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.behaviour import behaviour_of
from bnkit.dataflow import Call, Dataflow
from bnkit.diagnosis.evidence import Evidence, Norm, Seen, once
from bnkit.layers.domains import DomainBatchNorm
from bnkit.layers.masked import MaskedBatchNorm
from bnkit.moments import Moments, dtype_of_sums
from bnkit.norms import is_to_be_tried, keeps_something_else, why_frozen
from bnkit.train_eval_gap.output_change import relative_chance, relative_change

HALF_PRECISION = (torch.float16, torch.bfloat16)

# Of the size of an output. One that moves by all of it has nothing to do with what was learned; by
# half of it, noise is a fifth of its power (0.5² of 1 + 0.5²); by a quarter, a seventeenth.
QUARTER, HALF, ALL = 0.25, 0.5, 1.0

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_TENSORS = (*STATISTICS, "weight", "bias")

# The arguments of the two functions that the dataflow calls "batch_norm".
_OF_FUNCTIONAL = "input running_mean running_var weight bias training momentum eps".split()
_OF_TORCH = "input weight bias running_mean running_var training momentum eps cudnn_enabled".split()


@dataclass(frozen=True, eq=False)
class Reading:
    """One set of running statistics of a batch norm, with the parameters and numbers beside it.

    `path` is that of the layer, or of the module in whose forward the function was called; then
    `norm` is None. `names` are those of the tensors in the model, by what they are. `frozen` says
    whether no mini-batch enters the statistics while the model trains, `called` whether it ran in
    eval mode (True where nothing was run). `seen` is what it was given as trained, a call each, if
    that can be compared with the statistics. Rules ask for the same numbers: each is computed once.
    """

    path: str
    kind: str
    names: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    eps: float
    momentum: float | None
    frozen: bool
    called: bool = True
    norm: Norm | None = None
    seen: tuple[Seen, ...] = ()
    domain: str = ""

    @property
    def module(self) -> nn.Module | None:
        """The layer, None for a function."""
        return None if self.norm is None else self.norm.module

    @property
    def chosen(self) -> bool:
        """Whether these are the statistics by which the layer normalises now."""
        return not isinstance(self.module, DomainBatchNorm) or self.module.domain == self.domain

    @property
    def where(self) -> str:
        """The words that say which set of statistics this is, "" where there is one only."""
        return f" of the domain {self.domain!r}" if self.domain else ""

    @cached_property
    def running_mean(self) -> Tensor | None:
        """The running mean in float64, without steps that training never reached."""
        return self._statistic("running_mean")

    @cached_property
    def running_var(self) -> Tensor | None:
        """The running variance in float64, without steps that training never reached.

        None, too, where a trial shows that what has the name is no variance: a logarithm of one.
        """
        other = self.module is not None and keeps_something_else(self.module)
        return None if other else self._statistic("running_var")

    @cached_property
    def weight(self) -> Tensor | None:
        """γ in float64."""
        return wide(self.tensors["weight"]) if "weight" in self.tensors else None

    @cached_property
    def batches(self) -> int | None:
        """How many mini-batches entered the statistics: the fewest over the steps reached."""
        if "num_batches_tracked" not in self.tensors:
            return None
        counts = self.tensors["num_batches_tracked"].flatten()
        reached = counts[counts > 0]
        return int(reached.min()) if len(reached) else 0

    @cached_property
    def untouched(self) -> bool:
        """Whether the statistics are still those of the constructor: mean 0 and variance 1."""
        mean, variance = self.running_mean, self.running_var
        if mean is None or variance is None:
            return False
        return bool((mean == 0).all()) and bool((variance == 1).all())

    @cached_property
    def moments(self) -> Moments | None:
        """The moments of all that it was given, over its calls, if they are finite."""
        pooled = _pooled([seen.moments for seen in self.seen])
        return pooled if pooled is not None and pooled.count > 1 and is_finite(pooled) else None

    @cached_property
    def of_rows(self) -> Moments | None:
        """The moments of the means of the rows, over its calls."""
        return _pooled([seen.of_rows for seen in self.seen])

    @property
    def compared(self) -> "Comparison | None":
        """The running statistics beside those of all that it was given, None if one is unknown."""
        mean, variance = self.running_mean, self.running_var
        given, of_rows = self.moments, self.of_rows
        if mean is None or variance is None or given is None or of_rows is None:
            return None
        if mean.shape != given.mean.shape:
            return None
        return Comparison(self, mean, variance, given, of_rows)

    def _statistic(self, name: str) -> Tensor | None:
        if name not in self.tensors:
            return None
        values = wide(self.tensors[name])
        if values.dim() < 2 or not self.batches:
            return values
        return values[self.tensors["num_batches_tracked"] > 0]  # per step: those reached


@dataclass(frozen=True, eq=False)
class Comparison:
    """The running `mean` and `variance` of a reading beside the moments of what it was `given`.

    `of_rows` are the moments of the means of the rows, which are the units of sampling.
    """

    reading: Reading
    mean: Tensor
    variance: Tensor
    given: Moments
    of_rows: Moments

    @property
    def batches(self) -> int:
        """How many mini-batches it was given, over its calls."""
        return sum(seen.batches for seen in self.reading.seen)

    @property
    def change(self) -> float:
        """How far its output moves by the given statistics: the own difference of `explain_gap`."""
        of_batch = self.given.mean, self.given.variance
        return relative_change(of_batch, (self.mean, self.variance), **self._affine)

    @property
    def shift(self) -> float:
        """The largest |mean − running mean| of a channel, in running standard deviations."""
        deviations = (self.variance + self.reading.eps).sqrt()
        return ((self.given.mean - self.mean).abs() / deviations).max().item()

    def chance(self, squared_error: Tensor) -> float:
        """Return how far chance moves its output if the mean has this squared standard error."""
        return relative_chance(self.given.variance, squared_error, **self._affine)

    @property
    def _affine(self) -> dict[str, Any]:
        reading = self.reading
        return {"eps": reading.eps, "weight": reading.weight, "bias": reading.tensors.get("bias")}


@once
def readings(evidence: Evidence) -> list[Reading]:
    """Return a reading of every batch norm of the model, then of the functions that it calls.

    >>> model = nn.Sequential(nn.BatchNorm1d(2, momentum=0.01))
    >>> evidence = Evidence(model, (Norm("0", model[0]),))
    >>> [(reading.path, reading.momentum, reading.untouched) for reading in readings(evidence)]
    [('0', 0.01, True)]
    """
    layers = [reading for norm in evidence.norms for reading in _of_layer(evidence, norm)]
    return layers + list(_of_functions(evidence))


def wide(values: Tensor) -> Tensor:
    """Return the values in float64, without their history."""
    return values.detach().to(dtype_of_sums(values))


def is_finite(moments: Moments) -> bool:
    """Return whether there is no NaN and no infinity in the moments."""
    return bool(torch.isfinite(moments.mean).all() and torch.isfinite(moments.deviations).all())


def _pooled(parts: list[Moments]) -> Moments | None:
    return sum(parts[1:], parts[0]) if parts else None


def _of_layer(evidence: Evidence, norm: Norm) -> Iterator[Reading]:
    module: Any = norm.module
    per_domain = isinstance(module, DomainBatchNorm)
    for domain in module.domains if per_domain else ("",):
        attributes = {n: module.name_in(domain, n) if per_domain else n for n in _TENSORS}
        tensors = {name: _held(module, attribute) for name, attribute in attributes.items()}
        prefix = f"{norm.path}." if norm.path else ""
        seen = norm.as_trained if domain in ("", module.domain if domain else "") else ()
        yield Reading(
            path=norm.path,
            kind=norm.kind,
            names={name: prefix + attribute for name, attribute in attributes.items()},
            tensors={name: value for name, value in tensors.items() if value is not None},
            eps=_eps_of(module),
            momentum=_share_of(module),
            frozen=why_frozen(evidence.model, module) is not None,
            called=_is_called(evidence, norm),
            norm=norm,
            seen=seen if _comparable(module) else (),
            domain=domain,
        )


def _is_called(evidence: Evidence, norm: Norm) -> bool:
    """Return whether it ran in eval mode, by itself or in a layer that is one step of the flow."""
    if evidence.flow is None or norm.calls:
        return True
    above = norm.path.split(".")
    holders = (".".join(above[:depth]) for depth in range(len(above)))
    return any(evidence.flow.calls_of(holder) for holder in holders)


def _held(module: nn.Module, attribute: str) -> Tensor | None:
    # Of a domain that is not chosen, too, so first by the names that tensors have.
    own = {
        **dict(module.named_buffers(recurse=False)),
        **dict(module.named_parameters(recurse=False)),
    }
    value = own.get(attribute)
    value = getattr(module, attribute, None) if value is None else value
    return value if isinstance(value, Tensor) else None


def _number(module: nn.Module, attribute: str, otherwise: Any) -> Any:
    value = getattr(module, attribute, otherwise)
    return float(value) if isinstance(value, int | float) else otherwise


def _eps_of(module: nn.Module) -> float:
    """Return the eps by which a layer divides, whatever it is called; 0.0 where that is unknown."""
    known = behaviour_of(module).eps if is_to_be_tried(module) else None
    return float(_number(module, "eps", 0.0) if known is None else known)


def _share_of(module: nn.Module) -> float | None:
    """Return the share of a new mini-batch in the running statistics; None where it is unknown.

    In torch's and bnkit's layers that is the momentum. Other libraries have other conventions, so
    the share is what a trial of the class shows.
    """
    if is_to_be_tried(module):
        return behaviour_of(module).share
    momentum: float | None = _number(module, "momentum", None)
    return momentum


def _comparable(module: Any) -> bool:
    """Return whether the moments of the inputs are those of what its statistics are about."""
    if keeps_something_else(module):
        return False
    mean = _held(module, "running_mean")
    return not isinstance(module, MaskedBatchNorm) and (mean is None or mean.dim() == 1)


# Functions


@dataclass(frozen=True, eq=False)
class Function:
    """A call of torch's batch norm as a function, with its arguments by name."""

    call: Call
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def normalises_by_batch(self) -> bool:
        """Whether this call took the statistics of the mini-batch."""
        return bool(self.arguments.get("training")) or self.arguments.get("running_mean") is None


def functions(flow: Dataflow | None) -> list[Function]:
    """Return the calls of torch's functional batch norm in this dataflow, None for none."""
    calls = () if flow is None else flow.calls
    return [_bound(call) for call in calls if call.module is None and call.name == "batch_norm"]


def _bound(call: Call) -> Function:
    number = len(call.arguments) + len(call.keywords)
    names = _OF_TORCH if number == len(_OF_TORCH) else _OF_FUNCTIONAL
    return Function(call, {**dict(zip(names, call.arguments, strict=False)), **call.keywords})


def _of_functions(evidence: Evidence) -> Iterator[Reading]:
    held = dict(evidence.model.named_buffers()) | dict(evidence.model.named_parameters())
    visited: set[str] = set()
    for function in functions(evidence.trained_flow):
        names = {n: v for n, v in function.arguments.items() if n in _TENSORS and type(v) is str}
        key = names.get("running_mean", names.get("weight", ""))
        if not key or key in visited:  # its tensors are the model's, and read once
            continue
        visited.add(key)
        momentum = function.arguments.get("momentum", 0.1)
        frozen = evidence.training_flow is not None and not function.normalises_by_batch
        yield Reading(
            path=function.call.scope,
            kind="function",
            names=names,
            tensors={name: held[value] for name, value in names.items() if value in held},
            eps=float(function.arguments.get("eps", 1e-5)),
            momentum=float(momentum) if isinstance(momentum, int | float) else None,
            frozen=frozen,
        )
