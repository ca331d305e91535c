"""`Evidence`: everything that the rules look at, gathered once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from bnkit.dataflow import Call, Dataflow
from bnkit.moments import Moments
from bnkit.surgery.verification import Outcome

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Seen:
    """What one call of a batch norm in a forward was given, over all mini-batches.

    `of_rows` are the moments of the means of the rows, which are the units of sampling: the
    squared standard error of a mean is their unbiased variance / their count; `of_batches` are
    the moments if each row were the mean of its mini-batch, so its deviations are those between
    mini-batches of any sizes. `unpadded` are the moments without `padding`, which is
    how many positions at the ends of sequences repeat the last one; None for other inputs.
    `shape` is that of the input in the first mini-batch, `fewest` how many values per channel the
    smallest one had, and `smallest` the number of that mini-batch, from 1 on.
    """

    moments: Moments
    of_rows: Moments
    of_batches: Moments
    shape: tuple[int, ...]
    fewest: int
    smallest: int
    unpadded: Moments | None = None
    padding: int = 0
    batches: int = 1


@dataclass(frozen=True, eq=False)
class Norm:
    """A batch norm of the model, and what it was seen to do.

    `owner` is the path of the layer that calls it on its own input or output, None for others.
    `calls` and `training_calls` are those of the batch norm, or of its owner, in the two dataflows.
    The others have an item for each call in a forward, over all of `batches`: `as_trained` with all
    batch norms normalising by the mini-batch, but without dropout; `in_eval` with all of the model
    in eval mode; `in_training` in training mode, with dropout. They are empty where the batch norm
    did not run, where no batches were given, and where a run failed. `shapes` are the shapes of
    its inputs, by call, on the example.
    """

    path: str
    module: nn.Module
    owner: str | None = None
    calls: tuple[Call, ...] = ()
    training_calls: tuple[Call, ...] = ()
    as_trained: tuple[Seen, ...] = ()
    in_eval: tuple[Seen, ...] = ()
    in_training: tuple[Seen, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def kind(self) -> str:
        """The name of the class."""
        return type(self.module).__name__


@dataclass(frozen=True, eq=False)
class Step:
    """Which buffers one forward of a training step wrote into, and which its backward, by name.

    `gradients` are the norms of the parameters' gradients, by name, of a random linear loss.
    `cut_off` are the paths of the batch norms that ran and that no gradient reached, neither their
    parameters nor what they made: they ran under torch.no_grad, or what they made was detached.
    """

    written_in_forward: frozenset[str]
    written_in_backward: frozenset[str]
    gradients: Mapping[str, float] = field(default_factory=dict)
    cut_off: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Failure:
    """A mini-batch on which the model fails: its number from 1 on, where, and what is raised.

    `layer` is the path of the innermost module that failed, None where a second run went well.
    """

    number: int
    layer: str | None
    error: str

    @property
    def lacks_values(self) -> bool:
        """Whether a batch norm refused one value per channel, torch's or bnkit's."""
        return "1 value per channel" in self.error

    def __str__(self) -> str:
        place = {None: "", "": " in its own forward"}.get(self.layer, f" in layer '{self.layer}'")
        return f"the model fails on mini-batch {self.number}{place}: {self.error}"


@dataclass(frozen=True, eq=False)
class Loader:
    """What is known of the mini-batches: None where it is not.

    `batch_size` is that of the loader, or the most rows that a mini-batch had; `rows` are those of
    each mini-batch seen; `length` is the number of examples in the loader's dataset.
    """

    batch_size: int | None = None
    length: int | None = None
    drops_last: bool = False
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Parallel:
    """A DistributedDataParallel around the model (path "") or a part of it."""

    path: str
    broadcasts_buffers: bool


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the rules look at; they change none of it.

    `model` is a copy of the caller's, in its modes; DistributedDataParallel is taken off. `flow` is
    its dataflow in eval mode and `training_flow` in training mode, None where it could not be run,
    for the reason in `failure` and `training_failure`. `example` is what it was run on: the
    caller's, or the inputs of the first mini-batch (args, or kwargs); `batches_given` says whether
    there were mini-batches. `outcome` is what the model gave on the example in eval mode. `step` is
    None where no gradient could be taken, for the reason in `step_failure`. `groups` are the
    optimizer's parameter groups with the names of the model's parameters in place of these; what is
    no parameter of the model is left out. `losses` are the means of the loss by the statistics of
    the mini-batches and in eval mode, None without a loss. `failures` are those of training on the
    mini-batches. `notes` say what a rule could not run.
    """

    model: nn.Module
    norms: tuple[Norm, ...]
    flow: Dataflow | None = None
    training_flow: Dataflow | None = None
    failure: str = ""
    training_failure: str = ""
    step_failure: str = ""
    example: Any = None
    outcome: Outcome | None = None
    batches_given: bool = False
    loader: Loader = field(default_factory=Loader)
    step: Step | None = None
    optimizer: Optimizer | None = None
    groups: tuple[Mapping[str, Any], ...] | None = None
    parallel: tuple[Parallel, ...] = ()
    losses: tuple[float, float] | None = None
    failures: tuple[Failure, ...] = ()
    notes: list[str] = field(default_factory=list, init=False)
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def in_eval_mode(self) -> bool:
        """Whether the model as a whole is in eval mode."""
        return not self.model.training

    @property
    def trained_flow(self) -> Dataflow | None:
        """The dataflow of training, or of eval mode where the model does not run in training."""
        return self.training_flow or self.flow

    def trains(self, parameter: str) -> bool:
        """Return whether training may give this parameter a gradient, by its name in the model.

        One that ran in the training step and got none does not train: of a teacher, of a momentum
        encoder. One that did not run on the example may.
        """
        if not self.model.get_parameter(parameter).requires_grad:
            return False
        if self.step is None or parameter in self.step.gradients:
            return True
        owner, flow = module_of(parameter), self.training_flow
        ran = flow is not None and (flow.calls_of(owner) or parameter in _read(self))
        return not ran and owner not in self.step.cut_off

    def norm(self, path: str) -> Norm | None:
        """Return the batch norm at this path, None where there is none."""
        return _by_path(self).get(path)


def once(measure: Callable[[Evidence], T]) -> Callable[[Evidence], T]:
    """Return `measure`, which keeps its answer with the evidence: several rules ask for it.

    >>> asked = []
    >>> count = once(lambda evidence: asked.append(evidence) or len(evidence.norms))
    >>> evidence = Evidence(nn.Identity(), ())
    >>> count(evidence), count(evidence), len(asked)
    (0, 0, 1)
    """

    @wraps(measure)
    def measured(evidence: Evidence) -> T:
        known = evidence._known  # noqa: SLF001  it is kept for this function only
        if measure not in known:
            known[measure] = measure(evidence)
        answer: T = known[measure]
        return answer

    return measured


def module_of(parameter: str) -> str:
    """Return the path of the module that a parameter is of, also where it is parametrised.

    >>> module_of("1.bn.weight"), module_of("1.bn.parametrizations.weight.original")
    ('1.bn', '1.bn')
    """
    path, parametrised, _ = parameter.partition(".parametrizations.")
    return path if parametrised else parameter.rpartition(".")[0]


@once
def _read(evidence: Evidence) -> frozenset[str]:
    """Return the parameters that torch functions read in the training run."""
    calls = () if evidence.training_flow is None else evidence.training_flow.calls
    return frozenset(name for call in calls if call.module is None for name in call.parameters)


@once
def _by_path(evidence: Evidence) -> Mapping[str, Norm]:
    return {norm.path: norm for norm in evidence.norms}
