"""`train`: one plain training loop, the same for both sides of every comparison."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules

from bnkit.dataflow import as_call
from bnkit.experiments.metrics import ACCURACY
from bnkit.experiments.results import Curve, Outcome
from bnkit.experiments.tasks import (
    LOSSES,
    Judge,
    Loss,
    inputs_and_targets,
    logits_of,
    own_loss_of,
    reader,
)
from bnkit.internals import replace_tensors
from bnkit.names import one_of
from bnkit.observation import evaluating, normalising_by_batch_statistics, set_mode
from bnkit.parameters import parameter_groups
from bnkit.source_code import source_of

Batches = Iterable[Any]


@dataclass(frozen=True)
class Training:
    """How one network is trained, and when it is measured.

    `steps` counts optimizer steps; it is measured every `evaluate_every` of them, and at the end,
    by its `judge`, whose task says how outputs and targets meet; without one it is classification
    by accuracy. A `loss` of None is the one that the network computes itself. `weight_decay` leaves
    normalisations and biases alone; None is the optimizer's own default, for all parameters.
    """

    learning_rate: float
    optimizer: str | Callable[..., torch.optim.Optimizer] = "sgd"
    loss: str | Loss | None = "cross-entropy"
    steps: int = 1500
    evaluate_every: int = 25
    training_mode_accuracy: bool = False
    schedule: str | Callable[[torch.optim.Optimizer], Any] | None = None
    weight_decay: float | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009  it cannot be changed
    precision: str = "float32"
    clip: float | None = None
    judge: Judge | None = None

    @property
    def identity(self) -> dict[str, str]:
        """What of it decides the numbers, functions by their source."""
        names = [field.name for field in fields(self) if field.name != "judge"]
        values = {name: getattr(self, name) for name in names}
        judge = "" if self.judge is None else self.judge.identity
        return {n: source_of(v) if callable(v) else str(v) for n, v in values.items()} | {
            "judge": judge
        }


@dataclass(frozen=True)
class Trained:
    """What came of one training: the curve, how it ended, and the seconds spent in its steps."""

    outcome: Outcome
    reason: str
    curve: Curve
    steps: int
    seconds: float


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

Schedule = Callable[[torch.optim.Optimizer, int], Any]


def _warmup_cosine(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    rising = max(1, steps // 10)
    parts = [
        schedules.LinearLR(optimizer, 0.01, 1.0, rising),
        schedules.CosineAnnealingLR(optimizer, max(1, steps - rising)),
    ]
    return schedules.SequentialLR(optimizer, parts, [rising])


SCHEDULES: dict[str, Schedule] = {
    "cosine": schedules.CosineAnnealingLR,
    "step": lambda optimizer, steps: schedules.StepLR(optimizer, max(1, steps // 3)),
    "warmup-cosine": _warmup_cosine,
}


def train(
    model: nn.Module,
    batches: Batches,
    held_out: Batches,
    training: Training,
    *,
    tell: Callable[[int, Mapping[str, float | None]], object] = lambda _step, _numbers: None,
) -> Trained:
    """Return the curve of `model`, trained in place on `batches` and measured on `held_out`.

    Each batch is a tuple or list of inputs first (a tensor, a tuple of positional or a dict of
    keyword arguments) and targets last (N,), int64. `batches` is iterated again when it is used up.
    A run whose mean loss since the last evaluation is not finite has diverged, and ends there.
    `tell` gets the step and its numbers, loss and metric, at each measurement.

    >>> x, y = torch.eye(2).repeat(4, 1), torch.arange(2).repeat(4)
    >>> run = train(nn.Linear(2, 2), [(x, y)], [(x, y)], Training(1.0, steps=20, evaluate_every=10))
    >>> run.outcome, run.curve.steps, run.curve.metric
    ('finished', (10, 20), (1.0, 1.0))
    """
    criterion, optimizer = criterion_of(training), _optimizer(model, training)
    schedule = _schedule(optimizer, training)
    device = training.device
    half = PRECISIONS[training.precision] is torch.float16
    scaler = torch.amp.GradScaler(device.type) if half else None
    lowered = _lowered(training)
    read, measure = reader(model), partial(measuring(model, training), held_out)
    curve, seconds, loss_sum, since = Curve(), 0.0, torch.zeros(()), 0
    set_mode(model, training=True)
    endless = _endless(batches)
    began = time.perf_counter()
    for step in range(1, training.steps + 1):
        inputs, targets = moved(read(next(endless)), device)
        args, kwargs = as_call(inputs)
        with lowered:
            loss = criterion(model(*args, **kwargs), targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        if training.clip is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if schedule is not None:
            schedule.step()
        loss_sum = loss_sum + loss.detach()  # not in place: the loss may be on another device
        since += 1
        if step % training.evaluate_every == 0 or step == training.steps:
            mean_loss = loss_sum.item() / since  # waits for the device, so not at each step
            seconds += time.perf_counter() - began
            curve = _extended(curve, step, mean_loss, model, measure, training)
            tell(step, {"loss": curve.loss[-1], metric_of(training): curve.metric[-1]})
            if not math.isfinite(mean_loss):
                reason = f"the training loss was {mean_loss} before step {step}"
                return Trained("diverged", reason, curve, step, seconds)
            # Restarted here, so that the time of the evaluation does not count.
            loss_sum, since, began = torch.zeros(()), 0, time.perf_counter()
    return Trained("finished", "", curve, training.steps, seconds)


def metric_of(training: Training) -> str:
    """Return the name of the metric that is measured."""
    return ACCURACY.name if training.judge is None else training.judge.metric.name


def criterion_of(training: Training) -> Callable[[Any, Tensor], Tensor]:
    """Return the loss of what the network returned and the targets of a batch."""
    if training.loss is None:
        return _own_loss
    loss = (
        one_of(LOSSES, training.loss, "loss") if isinstance(training.loss, str) else training.loss
    )
    judge = training.judge
    if judge is None:
        return loss
    if loss is training.loss:
        return lambda outputs, targets: loss(logits_of(outputs), targets)
    task = judge.task
    return lambda outputs, targets: loss(*task.aligned(logits_of(outputs), targets))


def _own_loss(outputs: Any, _targets: Tensor) -> Tensor:
    found = own_loss_of(outputs)
    if found is None:
        raise TypeError(
            f"the network returns a {type(outputs).__name__} without a loss: pass `loss` to compare"
        )
    return found


def _optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    make = training.optimizer
    if isinstance(make, str):
        make = one_of(OPTIMIZERS, make, "optimizer")
    parameters: list[Any] = [p for p in model.parameters() if p.requires_grad]
    if training.weight_decay is not None:
        parameters = parameter_groups(model, weight_decay=training.weight_decay)
    if isinstance(training.optimizer, str):
        return make(parameters, lr=training.learning_rate)
    return make(parameters, training.learning_rate)


def _schedule(optimizer: torch.optim.Optimizer, training: Training) -> Any:
    make = training.schedule
    if isinstance(make, str):
        return one_of(SCHEDULES, make, "schedule")(optimizer, training.steps)
    return None if make is None else make(optimizer)


def _lowered(training: Training) -> AbstractContextManager[Any]:
    """Return the context of the precision, which may be entered again after it was left."""
    kind = PRECISIONS[training.precision]
    return nullcontext() if kind is None else torch.autocast(training.device.type, kind)


def moved(tree: Any, device: torch.device) -> Any:
    """Return the tree with its tensors on the device; on the CPU it is the tree itself."""
    return tree if device.type == "cpu" else replace_tensors(tree, lambda each: each.to(device))


def measuring(model: nn.Module, training: Training) -> Callable[[Batches], float]:
    """Return what gives the metric of `model` on batches, in the mode that the model then has.

    It raises ValueError without any batches. What it needs to know of the model it looks up once.
    """
    judge = training.judge
    if judge is None:
        return partial(accuracy, model)
    read = reader(model)
    lowered = _lowered(training)

    def run(batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        inputs, targets = moved(read(batch), training.device)
        args, kwargs = as_call(inputs)
        with lowered:
            outputs = model(*args, **kwargs)
        return logits_of(outputs), targets, own_loss_of(outputs)

    @torch.no_grad()
    def measure(batches: Batches) -> float:
        return judge(run, batches)

    return measure


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches) -> float:
    """Return the share of targets that the model's largest output names, in its present mode.

    Raises ValueError if `batches` is empty.
    """
    correct = total = 0
    for inputs, targets in map(inputs_and_targets, batches):
        args, kwargs = as_call(inputs)
        correct += (model(*args, **kwargs).argmax(1) == targets).sum()
        total += len(targets)
    if not total:
        raise ValueError("the held-out batches are empty: there is nothing to measure accuracy on")
    return float(correct) / total


def _extended(
    curve: Curve,
    step: int,
    loss: float,
    model: nn.Module,
    measure: Callable[[], float],
    training: Training,
) -> Curve:
    with evaluating(model):
        value = measure()
    own: tuple[float, ...] = ()
    if training.training_mode_accuracy:
        with normalising_by_batch_statistics(model):
            own = (measure(),)
    return Curve(
        steps=(*curve.steps, step),
        loss=(*curve.loss, _finite(loss)),
        metric=(*curve.metric, _finite(value)),
        training_mode_metric=(*curve.training_mode_metric, *map(_finite, own)),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _endless(batches: Batches) -> Iterator[Any]:
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise ValueError(
                "the training batches are empty, or an iterator that is used up after one epoch: "
                "return a list or a DataLoader, which can be iterated again"
            )
