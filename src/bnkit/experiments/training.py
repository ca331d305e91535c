"""`train`: one plain training loop, the same for both sides of every comparison."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.dataflow import as_call
from bnkit.experiments.results import Curve, Outcome
from bnkit.names import one_of
from bnkit.observation import evaluating, normalising_by_batch_statistics, set_mode

Batches = Iterable[Any]


@dataclass(frozen=True)
class Training:
    """How one network is trained, and when it is measured.

    `steps` counts optimizer steps; it is measured every `evaluate_every` of them, and at the end.
    """

    learning_rate: float
    optimizer: str = "sgd"
    loss: str = "cross-entropy"
    steps: int = 1500
    evaluate_every: int = 25
    training_mode_accuracy: bool = False


@dataclass(frozen=True)
class Trained:
    """What came of one training: the curve, how it ended, and the seconds spent in its steps."""

    outcome: Outcome
    reason: str
    curve: Curve
    steps: int
    seconds: float


def _per_class_sigmoid(outputs: Tensor, targets: Tensor) -> Tensor:
    wanted = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, wanted)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": F.cross_entropy,
    "sigmoid-cross-entropy": _per_class_sigmoid,
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def train(model: nn.Module, batches: Batches, held_out: Batches, training: Training) -> Trained:
    """Return the curve of `model`, trained in place on `batches` and measured on `held_out`.

    Each batch is a tuple or list of inputs first (a tensor, a tuple of positional or a dict of
    keyword arguments) and targets last (N,), int64. `batches` is iterated again when it is used up.
    A run whose mean loss since the last evaluation is not finite has diverged, and ends there.

    >>> x, y = torch.eye(2).repeat(4, 1), torch.arange(2).repeat(4)
    >>> run = train(nn.Linear(2, 2), [(x, y)], [(x, y)], Training(1.0, steps=20, evaluate_every=10))
    >>> run.outcome, run.curve.steps, run.curve.metric
    ('finished', (10, 20), (1.0, 1.0))
    """
    criterion = one_of(LOSSES, training.loss, "loss")
    make = one_of(OPTIMIZERS, training.optimizer, "optimizer")
    optimizer = make([p for p in model.parameters() if p.requires_grad], lr=training.learning_rate)
    curve, seconds, loss_sum, since = Curve(), 0.0, torch.zeros(()), 0
    set_mode(model, training=True)
    endless = _endless(batches)
    began = time.perf_counter()
    for step in range(1, training.steps + 1):
        inputs, targets = next(endless)
        args, kwargs = as_call(inputs)
        loss = criterion(model(*args, **kwargs), targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        loss_sum = loss_sum + loss.detach()  # not in place: the loss may be on another device
        since += 1
        if step % training.evaluate_every == 0 or step == training.steps:
            mean_loss = loss_sum.item() / since  # waits for the device, so not at each step
            seconds += time.perf_counter() - began
            curve = _extended(curve, step, mean_loss, model, held_out, training)
            if not math.isfinite(mean_loss):
                reason = f"the training loss was {mean_loss} before step {step}"
                return Trained("diverged", reason, curve, step, seconds)
            # Restarted here, so that the time of the evaluation does not count.
            loss_sum, since, began = torch.zeros(()), 0, time.perf_counter()
    return Trained("finished", "", curve, training.steps, seconds)


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


def inputs_and_targets(batch: Any) -> tuple[Any, Tensor]:
    """Return the first and the last item of a batch; TypeError if it is not a tuple of two or more.

    Inputs in a list come back as a tuple, since torch's default collation makes lists of tuples.

    >>> inputs_and_targets(("x", "weights", "y"))
    ('x', 'y')
    """
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise TypeError(
            f"a batch is a {type(batch).__name__}{length}: each must be a tuple or list with the "
            f"inputs first and the targets last"
        )
    inputs = tuple(batch[0]) if isinstance(batch[0], list) else batch[0]
    return inputs, batch[-1]


def _extended(
    curve: Curve, step: int, loss: float, model: nn.Module, held_out: Batches, training: Training
) -> Curve:
    with evaluating(model):
        measured = accuracy(model, held_out)
    own: tuple[float, ...] = ()
    if training.training_mode_accuracy:
        with normalising_by_batch_statistics(model):
            own = (accuracy(model, held_out),)
    return Curve(
        steps=(*curve.steps, step),
        loss=(*curve.loss, loss if math.isfinite(loss) else None),
        metric=(*curve.metric, measured),
        training_mode_metric=(*curve.training_mode_metric, *own),
    )


def _endless(batches: Batches) -> Iterator[tuple[Any, Tensor]]:
    while True:
        batch = None
        for batch in batches:
            yield inputs_and_targets(batch)
        if batch is None:
            raise ValueError(
                "the training batches are empty, or an iterator that is used up after one epoch: "
                "return a list or a DataLoader, which can be iterated again"
            )
