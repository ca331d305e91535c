"""`gather`: the evidence on a model, by a few runs of copies of it."""

import copy
import inspect
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from bnkit.batches import Call, Inputs, labelled_calls_of, number_of
from bnkit.dataflow import Dataflow, duplicate
from bnkit.diagnosis.evidence import Evidence, Loader, Norm, Parallel
from bnkit.diagnosis.runs import BatchRuns, ExampleRuns, Observed, rows_of, run_on_example
from bnkit.layers.exchange import without_other_ranks
from bnkit.norms import batch_norms, has_other_channels, unwrapped
from bnkit.observation import follow_mode, preserved_random_state
from bnkit.options import Default
from bnkit.progress import counted
from bnkit.surgery.normalized import Normalized

NOTHING_TO_RUN = "neither an example nor mini-batches were given"
_NO_CALLS = Dataflow((), {}, frozenset())

Loss = Callable[[Any, Any], Any]


class Given(TypedDict, total=False):
    """What `diagnose` may be given beside the mini-batches; it says what each is."""

    example: Annotated[Any, Default(None)]
    optimizer: Annotated[Optimizer | None, Default(None)]
    inputs: Annotated[Inputs | None, Default(None)]
    loss: Annotated[Loss | None, Default(None)]


def gather(
    model: nn.Module, batches: Any = None, *, progress: bool = False, **given: Unpack[Given]
) -> Evidence:
    """Return the evidence on `model`, which stays as it is, as do all random generators.

    It costs three forwards of each mini-batch, three of the example (without one the first
    mini-batch is it), a backward, and four copies of the model, of which at most three live at a
    time. Raises TypeError and ValueError for arguments that are not what they should be, not for a
    model that fails on them: the evidence says why it could not be run.

    >>> gather(nn.Sequential(nn.BatchNorm1d(2)), torch.ones(4, 2)).norms[0].as_trained[0].fewest
    4
    """
    optimizer, example = given.get("optimizer"), given.get("example")
    groups, loss = named_groups(model, optimizer), given.get("loss")
    _refuse_loss_without(loss, batches)
    with (
        without_other_ranks(),
        _quietly(),
        preserved_random_state(),
        preserved_generators(batches),
        torch.inference_mode(mode=False),
    ):
        working, parallel = working_copy(model)
        paths = batch_norms(working).paths
        observed = Observed(), Observed(), Observed()  # as trained, in eval mode, in training mode
        loader, losses = Loader(), None
        if batches is not None:
            runs = BatchRuns(working, paths)
            calls = labelled_calls_of(working, batches, inputs=given.get("inputs"))
            total, begun = number_of(batches), time.monotonic()
            calls = counted(calls, "diagnosing", total=total, begun=begun, shown=progress)
            first, rows, losses = _run(runs, calls, loss)
            loader = _loader(batches, rows)
            observed = runs.as_trained.observed, runs.in_eval.observed, runs.in_training.observed
            del runs  # and with it two copies of the model
            example = _example_of(working, first) if example is None else example
        on_example = ExampleRuns(failure=NOTHING_TO_RUN, training_failure=NOTHING_TO_RUN)
        if example is not None:
            on_example = run_on_example(working, example, paths)
    return Evidence(
        model=working,
        norms=tuple(_norms(working, on_example, observed)),
        flow=on_example.flow,
        training_flow=on_example.training_flow,
        failure=on_example.failure or observed[1].failure,
        training_failure=on_example.training_failure or observed[2].failure,
        step_failure=on_example.step_failure,
        example=example,
        outcome=on_example.outcome,
        batches_given=batches is not None,
        loader=loader,
        step=on_example.step,
        optimizer=optimizer,
        groups=groups,
        parallel=parallel,
        losses=losses,
        failures=tuple(observed[2].failures),
    )


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def _quietly() -> Iterator[None]:
    """Drop the warnings of the model in these runs, which are not about its training.

    Python's filters of warnings are of the whole process, as torch's random generators are, so
    diagnoses in several threads take turns.
    """
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _run(
    runs: BatchRuns, calls: Iterable[tuple[Call, Any]], loss: Loss | None
) -> tuple[Call, tuple[int, ...], tuple[float, float] | None]:
    """Run each mini-batch in all ways; return the first one, the rows of each, and the losses.

    The losses are means over the rows, None where no mini-batch could be run.
    """
    first, rows, weights, losses = None, list[int](), list[int](), list[list[float]]()
    for call, target in calls:
        first, length = first or call, rows_of(call)
        rows += [] if length is None else [length]
        outputs = runs.run(call)
        each = [] if loss is None else _losses(loss, outputs, target)
        if each:
            weights.append(length or 1)
            losses.append(each)
    assert first is not None  # labelled_calls_of raises for no mini-batch
    as_trained, in_eval = (
        sum(weight * each[way] for weight, each in zip(weights, losses, strict=True))
        for way in (0, 1)
    )
    total = sum(weights)
    return first, tuple(rows), (as_trained / total, in_eval / total) if total else None


def _loader(batches: Any, rows: tuple[int, ...]) -> Loader:
    size = getattr(batches, "batch_size", None)
    try:
        length = len(batches.dataset)
    except (AttributeError, TypeError):  # no DataLoader, or one whose data have no length
        length = None
    return Loader(
        batch_size=size if isinstance(size, int) else max(rows, default=None),
        length=length,
        drops_last=bool(getattr(batches, "drop_last", False)),
        rows=rows,
    )


def _example_of(model: nn.Module, call: Call) -> Any:
    """Return the call in a form of an example: a tuple, or a dict of keyword arguments."""
    args, kwargs = call
    names = list(inspect.signature(model.forward).parameters) if args and kwargs else []
    return dict(zip(names, args, strict=False)) | kwargs if kwargs else args


def _norms(model: nn.Module, runs: ExampleRuns, observed: tuple[Observed, ...]) -> Iterator[Norm]:
    flow, training_flow = runs.flow or _NO_CALLS, runs.training_flow or _NO_CALLS
    owners = {
        id(layer.batchnorm): path
        for path, layer in model.named_modules()
        if isinstance(layer, Normalized)
    }
    for path, module in batch_norms(model).layers.items():
        owner = owners.get(id(module))
        caller = path if owner is None else owner
        shapes = tuple(runs.shapes.get(path, ()))
        other = bool(shapes) and has_other_channels(module, shapes[0])
        as_trained, in_eval, in_training = (
            () if other else tuple(way.seen.get(path, ())) for way in observed
        )
        yield Norm(
            path=path,
            module=module,
            owner=owner,
            calls=tuple(flow.calls_of(caller)),
            training_calls=tuple(training_flow.calls_of(caller)),
            as_trained=as_trained,
            in_eval=in_eval,
            in_training=in_training,
            shapes=shapes,
        )


# The loss


def _refuse_loss_without(loss: Loss | None, batches: Any) -> None:
    if loss is not None and batches is None:
        raise ValueError("`loss` is given and `batches` are not: pass those on which to take it")
    if loss is not None and not callable(loss):
        raise TypeError(
            f"`loss` is a {type(loss).__name__}: pass a function of the model's output "
            f"and the target, as torch.nn.functional.cross_entropy"
        )


def _losses(loss: Loss, outputs: tuple[Any, Any], target: Any) -> list[float]:
    """Return the loss of what the model made of a mini-batch, as trained and in eval mode.

    Empty where it fails on it, as `not_run` says.
    """
    if target is None:
        raise ValueError(
            "`loss` is given, and a mini-batch of `batches` has no target: pass mini-batches "
            "(inputs, target), or leave `loss` out"
        )
    if any(output is None for output in outputs):
        return []
    return [_number(loss(output, target)) for output in outputs]


def _number(value: Any) -> float:
    if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
        return float(value)
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
    raise TypeError(
        f"`loss` returned a {type(value).__name__}{shape}: it must return one number, the mean "
        f"over the mini-batch"
    )


# The copy of the model, and what is read from the original


class _Transparent(nn.Module):
    """What stands where a DistributedDataParallel stood, so that all paths stay."""

    def __init__(self, module: nn.Module, around: nn.Module) -> None:
        super().__init__()
        self.module = module
        follow_mode(self, around)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def working_copy(model: nn.Module) -> tuple[nn.Module, tuple[Parallel, ...]]:
    """Return a copy of `model` without wrappers, and the DistributedDataParallel that it had.

    A wrapper around all of it is taken off; one around a part gives way to a module of the same
    paths. Raises as `bnkit.dataflow.duplicate` does for what cannot be copied.

    >>> working_copy(nn.DataParallel(nn.Linear(2, 2)))
    (Linear(in_features=2, out_features=2, bias=True), ())
    """
    inner = unwrapped(model)
    parts = {
        path: part
        for path, part in inner.named_modules()
        if isinstance(part, DistributedDataParallel)
    }
    found = {"": model, **parts} if isinstance(model, DistributedDataParallel) else parts
    parallel = tuple(Parallel(path, part.broadcast_buffers) for path, part in found.items())
    if not parts:
        return duplicate(inner, gathers=True), parallel
    transparent = {id(part): _Transparent(duplicate(part.module), part) for part in parts.values()}
    return copy.deepcopy(inner, transparent), parallel


def named_groups(
    model: nn.Module, optimizer: Optimizer | None
) -> tuple[Mapping[str, Any], ...] | None:
    """Return the optimizer's groups with the names of the model's parameters for these.

    >>> layer = nn.Linear(2, 2)
    >>> named_groups(layer, torch.optim.SGD([layer.bias], lr=1.0))[0]["params"]
    ['bias']
    """
    if optimizer is None:
        return None
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"`optimizer` is a {type(optimizer).__name__}: pass the torch.optim.Optimizer that "
            f"trains the model"
        )
    names = {id(parameter): name for name, parameter in unwrapped(model).named_parameters()}
    return tuple(
        {**group, "params": [names[id(p)] for p in group["params"] if id(p) in names]}
        for group in optimizer.param_groups
    )


@contextmanager
def preserved_generators(batches: Any) -> Iterator[None]:
    """Give back the state of the generators that a DataLoader and its samplers own."""
    samplers = [getattr(batches, name, None) for name in ("sampler", "batch_sampler")]
    owners = [batches, *samplers, getattr(samplers[1], "sampler", None)]
    found = [getattr(owner, "generator", None) for owner in owners]
    states = [(g, g.get_state()) for g in found if isinstance(g, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
