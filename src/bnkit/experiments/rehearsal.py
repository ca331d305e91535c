"""`rehearse`: every part of a comparison is tried once, on both sides, before anything runs."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bnkit.batches import Call
from bnkit.dataflow import ExampleError, as_call, observe
from bnkit.experiments.experiment import Experiment
from bnkit.experiments.loaders import first_of, seed_everything
from bnkit.experiments.own_loop import EndOfTrial, OwnLoop, RunningTrial, listed
from bnkit.experiments.provenance import array_fingerprint, batch_fingerprint
from bnkit.experiments.results import Side
from bnkit.experiments.settings import Settings, training_of
from bnkit.experiments.sides import has_batch_norms
from bnkit.experiments.tasks import (
    CLASSIFICATION,
    LOSSES,
    OWN,
    Judge,
    judge_of,
    logits_of,
    own_loss_of,
    reader,
    task_of,
)
from bnkit.experiments.training import Training, train
from bnkit.internals import replace_tensors
from bnkit.observation import (
    on_the_side,
    preserved_random_state,
    preserved_torch_settings,
    watching,
)
from bnkit.platforms import ending
from bnkit.references import blaming

PATIENCE = 600.0  # seconds that a loop of the user's own may take to its next report, or its end


def rehearse(experiment: Experiment, settings: Settings) -> Experiment:
    """Build both sides, and train them for one step: by the built-in loop or that of the user.

    The experiment comes back with what a loop of the user's own shows: the metric that it reports,
    and the calls on which the twin is planned.

    Raises ValueError or TypeError, in one sentence, for a network that cannot be normalised or
    trained, a batch that it cannot take, outputs that are not scores of the classes, networks or
    batches that differ when they are drawn again, a loop that reports nothing, other metrics on
    each side, or does not end, and code that cannot be sent to a process.
    """
    for activation in experiment.activations:
        built = experiment.built(activation, 0)
        # Again, for the other sides: under the same seed it must be another object, yet equal.
        again = experiment.built(activation, 0)
        equal = array_fingerprint(again) == array_fingerprint(built)
        _check_repeatable(another=again is not built, equal=equal)
        if experiment.loop is None:
            plain = experiment.side("plain", built, 0)
            experiment = _try_sides(experiment, plain, again, settings)
        else:
            experiment = _try_loop(experiment, built, again, activation, settings)
    if experiment.source is not None:
        _check_same_batches(experiment)
    check_portable(experiment)
    return experiment


def _try_sides(
    experiment: Experiment, plain: nn.Module, again: nn.Module, settings: Settings
) -> Experiment:
    """Return the experiment with how it is judged, for data of the user's own."""
    if experiment.is_own_data:
        experiment = replace(experiment, judge=_judge_of(experiment, plain, settings))
    rate, *_ = settings.learning_rates
    step = replace(
        training_of(settings, rate, steps=1, judge=experiment.judge),
        evaluate_every=1,
        training_mode_accuracy=False,
    )
    with preserved_torch_settings():
        _try_side(experiment, "plain", plain, step)
    with preserved_torch_settings():
        for side in experiment.sides:
            if side != "plain":
                _try_side(experiment, side, experiment.side(side, again, 0), step)
    metric = experiment.metric if experiment.judge is None else experiment.judge.metric
    return replace(experiment, metric=metric)


def _judge_of(experiment: Experiment, model: nn.Module, settings: Settings) -> Judge:
    """Return how the user's own data are judged: the task by a batch, its metric, and its loss."""
    inputs, targets = reader(model)(first_of(experiment.loaders(0).train))
    outputs = _outputs(model, inputs, "training")
    own = own_loss_of(outputs)
    measure = settings.metric
    if callable(settings.loss) and (
        measure == "loss" if isinstance(measure, str) else measure is not None
    ):
        task = OWN
    else:
        assert experiment.source is not None
        marks = experiment.source.marks
        task = task_of(logits_of(outputs), targets, loss=settings.loss, marks=marks)
    loss = settings.loss or (task.loss if own is None else None)
    metric = settings.metric
    if own is not None and settings.loss is None and metric is None:
        # A network that shifts or weighs its targets has a task of its own, which only it knows.
        usual = LOSSES[task.loss](*task.aligned(logits_of(outputs), targets))
        metric = None if torch.allclose(usual, own.to(usual), rtol=1e-3) else "loss"
    if isinstance(loss, str) and loss not in task.losses:
        raise ValueError(
            f"`loss` is {loss!r}, and the task is {task.name}: choose from "
            f"{', '.join(task.losses)}, or pass a function of output and target"
        )
    return judge_of(task, metric, loss, higher_is_better=settings.higher_is_better)


def _try_loop(
    experiment: Experiment,
    built: nn.Module,
    again: nn.Module,
    variant: str,
    settings: Settings,
) -> Experiment:
    """Return the experiment with what one step of `train` shows, on every side."""
    assert experiment.loop is not None
    known = "batch norm" if has_batch_norms(built) else "plain"  # the side that needs no plan
    first = _rehearsed(experiment, built, known, variant, settings)
    metric = experiment.loop.judged(first.reported)
    check_read(first.read, experiment.loop, settings)
    calls = experiment.calls or first.calls
    if not calls:
        raise ValueError(
            "`train` never calls the network in its rehearsal, so the twin cannot be planned: pass "
            "`example`, its inputs"
        )
    experiment = replace(experiment, metric=metric, calls=calls)
    for side in experiment.sides:
        if side != known:
            model = experiment.side(side, again, 0)
            other = _rehearsed(experiment, model, side, variant, settings)
            check_same_reports(first, known, other, side)
    return experiment


def _try_side(experiment: Experiment, side: Side, model: nn.Module, step: Training) -> None:
    loaders = experiment.loaders(0)
    first, test = first_of(loaders.train), _first_that_counts(experiment, model, loaders.test)
    _check_batch(experiment, model, first, "training")
    _check_batch(experiment, model, test, "test")
    model.to(step.device)
    with blaming(f"a training step of the {side} network fails"):
        train(model, [first], [test], step)


def _first_that_counts(experiment: Experiment, model: nn.Module, batches: Iterable[Any]) -> Any:
    """Return the first batch with a target that is counted; the first of all where none is."""
    if experiment.judge is not None:
        read, ignored = reader(model), experiment.judge.task.ignored
        for batch in batches:
            if bool((read(batch)[1] != ignored).any()):
                return batch
    return first_of(batches)


def _check_batch(experiment: Experiment, model: nn.Module, batch: Any, name: str) -> None:
    inputs, targets = reader(model)(batch)
    outputs = logits_of(_outputs(model, inputs, name))
    task = CLASSIFICATION if experiment.judge is None else experiment.judge.task
    if task.name != "classification":
        return
    if outputs.dim() != 2:
        raise ValueError(
            f"the network returns {tuple(outputs.shape)} for a {name} batch: it must return scores "
            f"of shape (mini-batch, classes)"
        )
    if len(targets) != len(outputs):
        raise ValueError(
            f"a {name} batch has {len(targets)} targets and the network returns {len(outputs)} "
            f"rows: there must be one target for each"
        )
    if targets.min() < 0:
        raise ValueError(
            f"a target of a {name} batch is {targets.min().item()}: class numbers begin at 0"
        )
    if experiment.classes > outputs.shape[1]:
        raise ValueError(
            f"a target of `data` is {experiment.classes - 1} and the network has "
            f"{outputs.shape[1]} outputs: targets must lie from 0 to {outputs.shape[1] - 1}"
        )


def _outputs(model: nn.Module, inputs: Any, name: str) -> Any:
    args, kwargs = as_call(inputs)
    try:
        observe(model, inputs)  # its errors name the layer
        with on_the_side(model):
            return model(*args, **kwargs)
    except ExampleError as error:
        raise ExampleError(f"a {name} batch does not fit the network: {error}") from error


def _check_repeatable(*, another: bool, equal: bool) -> None:
    if not (another and equal):
        raise ValueError(
            "`build` gives another network when it is called again under the same seed, so the "
            "sides could not begin alike: build a new one at each call, and draw its weights from "
            "the global random generators of torch, Python or NumPy"
        )


def _check_same_batches(experiment: Experiment) -> None:
    one, other = (
        [batch_fingerprint(first_of(part)) for part in experiment.loaders(0)] for _ in range(2)
    )
    if one != other:
        raise ValueError(
            "`data` gives other batches when it is called again under the same seed, so the sides "
            "could not see the same: draw from the global random generators of torch, Python or "
            "NumPy, or seed your own in it"
        )


def check_portable(experiment: object) -> None:
    """Raise ValueError where an experiment cannot be sent to another process."""
    from loky.backend.reduction import dumps  # noqa: PLC0415  needed only here

    with blaming("`build` and `data` run in other processes, and cannot be sent there"):
        dumps(experiment)


@dataclass(frozen=True)
class Rehearsed:
    """What one step of `train` showed: the metrics, the first calls, and the settings it read.

    `reported` holds the step of the first report of each metric. `calls` are the first of each
    outermost module with parameters, by its path: of the network itself, "", or of its parts where
    the loop calls those.
    """

    reported: Mapping[str, int]
    calls: Mapping[str, Call]
    read: frozenset[str]


def _rehearsed(
    experiment: Experiment, model: nn.Module, side: Side, variant: str, settings: Settings
) -> Rehearsed:
    """Return what `train` does with this network up to its first report."""
    loop, name = experiment.loop, f"the {side} network"
    assert loop is not None
    rate, *_ = settings.learning_rates
    trial = experiment.running_trial(side, variant, 0, rate, rehearsal=True)
    calls: dict[str, Call] = {}
    model.to(loop.device)
    with (
        preserved_random_state(),
        preserved_torch_settings(),
        _first_calls(model, calls),
    ):
        seed_everything(0)
        run_rehearsal(loop, model, trial, name)
    return Rehearsed(trial.reported, calls, trial.read)


def run_rehearsal(loop: OwnLoop, model: Any, trial: RunningTrial, name: str) -> None:
    """Let `train` run up to the end of its rehearsal; ValueError where it fails or tells nothing.

    `name` says in its messages which model it is.
    """
    try:
        with (
            ending(EndOfTrial, lambda: trial.last + PATIENCE - time.perf_counter()),
            blaming(f"`train` fails with {name}"),
        ):
            loop.function(model, trial)
    except EndOfTrial:
        raise ValueError(_no_end(trial, name)) from None
    if not trial.reported:
        raise ValueError(
            f"`train` has reported nothing with {name}: measure in its loop, as in "
            f"`if trial.report(step, accuracy=share): break`"
        )


def _no_end(trial: RunningTrial, name: str) -> str:
    if not trial.ended:
        return (
            f"`train` has reported nothing with {name} for {PATIENCE:g} seconds: report more "
            f"often, and where trial.rehearsal is True after a few steps"
        )
    return (
        f"`train` goes on with {name} after trial.report returned True: end all its loops then, as "
        f"in `if trial.report(step, loss=loss): return`"
    )


def check_read(read: frozenset[str], loop: OwnLoop, settings: Settings) -> None:
    """Raise ValueError for settings that are swept and that `train` has not `read`."""
    if len(settings.learning_rates) > 1 and "learning_rate" not in read:
        raise ValueError(
            f"`learning_rates` has {len(settings.learning_rates)} values, and `train` never reads "
            f"trial.learning_rate: read it, or pass the one that it has"
        )
    swept = {name for variant in loop.variants.values() for name in variant}
    if unread := sorted(swept - read):
        raise ValueError(
            f"`sweep` has {listed(unread)}, and `train` never reads "
            f"trial.settings[{unread[0]!r}]: read it, or leave it out"
        )


def check_same_reports(one: Rehearsed, known: Side, other: Rehearsed, side: Side) -> None:
    """Raise ValueError unless `train` reports the same with both networks."""
    if set(one.reported) != set(other.reported):
        raise ValueError(
            f"`train` reports {listed(one.reported)} with the {known} network and "
            f"{listed(other.reported)} with the {side} network: report the same with both"
        )
    for name, step in one.reported.items():
        if other.reported[name] != step:
            raise ValueError(
                f"`train` reports {name!r} first at step {step} with the {known} network and at "
                f"step {other.reported[name]} with the {side} network: measure both at the same "
                f"steps"
            )


@contextmanager
def _first_calls(model: nn.Module, calls: dict[str, Call]) -> Iterator[None]:
    inside = 0  # how many modules are running, each called by the one before

    def before(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal inside
        inside += 1
        if inside > 1:
            return
        if path not in calls and any(True for _ in module.parameters()):
            # Copies on the CPU, without their gradients: the loop may write into its own.
            calls[path] = replace_tensors((args, kwargs), lambda each: each.detach().cpu().clone())

    def after(*_: Any) -> None:
        nonlocal inside
        inside -= 1

    with watching(model, before=before, after=after):
        yield
