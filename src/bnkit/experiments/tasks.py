"""`Task`: what a network is asked to do, by its targets and outputs; its losses and metrics."""

import copy
import inspect
import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.batches import LABELS
from bnkit.experiments.metrics import Metric, metric_named
from bnkit.internals import replace_tensors
from bnkit.names import one_of
from bnkit.source_code import source_of

Loss = Callable[[Tensor, Tensor], Tensor]
Ran = tuple[Tensor, Tensor, Tensor | None]  # outputs, targets, and the network's own loss
Run = Callable[[Any], Ran]

IGNORED = -100  # torch's own ignore_index: padding and pixels without a class


def _per_class_sigmoid(outputs: Tensor, targets: Tensor) -> Tensor:
    wanted = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, wanted)


def _sigmoid(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))


LOSSES: dict[str, Loss] = {
    "cross-entropy": F.cross_entropy,
    "sigmoid-cross-entropy": _per_class_sigmoid,
    "bce": _sigmoid,
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}

METRICS = {
    "accuracy": Metric("accuracy", percent=True),
    "f1": Metric("f1", percent=True),
    "iou": Metric("iou", percent=True),
    "mse": Metric("mse", higher_is_better=False),
    "mae": Metric("mae", higher_is_better=False),
    "r2": Metric("r2"),
    "loss": Metric("loss", higher_is_better=False),
}


@dataclass(frozen=True)
class Task:
    """What a network is asked to do: its usual loss, its metrics, the usual first, and its losses.

    `classes_last` says that the classes are the last axis of the outputs, and not the second;
    `ignored` is the class number that is not counted.
    """

    name: str
    loss: str
    metrics: tuple[str, ...]
    losses: tuple[str, ...]
    classes_last: bool = False
    ignored: int = IGNORED

    def aligned(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in the shapes that losses take: classes second, or equal shapes."""
        if self.name in _OF_CLASSES:
            if self.classes_last:
                outputs = outputs.movedim(-1, 1)
            targets = targets.long()  # which is the tensor itself where it is int64
            if self.ignored != IGNORED:
                targets = targets.masked_fill(targets == self.ignored, IGNORED)
        elif self is not OWN and targets.shape != outputs.shape:
            targets = targets.reshape(outputs.shape)
        return outputs, targets


_OF_CLASSES = ("classification", "segmentation", "sequence labelling")
_CLASSES_OF_ONE = ("cross-entropy", "sigmoid-cross-entropy")
CLASSIFICATION = Task(
    "classification", "cross-entropy", ("accuracy", "f1", "loss"), _CLASSES_OF_ONE
)
BINARY = Task("binary classification", "bce", ("accuracy", "f1", "loss"), ("bce",))
MULTI_LABEL = Task("multi-label classification", "bce", ("f1", "accuracy", "loss"), ("bce",))
REGRESSION = Task("regression", "mse", ("mse", "mae", "r2", "loss"), ("mse", "mae", "huber"))
SEGMENTATION = Task(
    "segmentation", "cross-entropy", ("iou", "accuracy", "f1", "loss"), ("cross-entropy",)
)
SEQUENCE = Task(
    "sequence labelling", "cross-entropy", ("accuracy", "f1", "loss"), ("cross-entropy",)
)
OWN = Task("of your own", "", ("loss",), ())  # its loss and its metric are the user's


def task_of(outputs: Any, targets: Tensor, *, loss: Any = None) -> Task:
    """Return the task that a mini-batch shows; `loss`, a name, decides where two are possible.

    Raises ValueError where two are possible and it does not, and for shapes that fit none.

    >>> task_of(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])).name
    'classification'
    >>> task_of(torch.zeros(4, 1), torch.randn(4)).name
    'regression'
    """
    is_class = not targets.dtype.is_floating_point
    alike = outputs.shape == targets.shape or outputs.squeeze(-1).shape == targets.squeeze(-1).shape
    if is_class and outputs.dim() == targets.dim() + 1 and not alike:
        return _of_classes(outputs, targets)
    if not alike:
        raise ValueError(
            f"the network returns {tuple(outputs.shape)} for targets of {targets.dtype} of shape "
            f"{tuple(targets.shape)}: numbers need outputs of their shape, class numbers one axis "
            f"more, of scores"
        )
    if loss in ("mse", "mae", "huber"):
        return REGRESSION
    several = targets.dim() > 1 and targets.shape[-1] > 1
    if loss == "bce":
        return MULTI_LABEL if several else BINARY
    zero_or_one = bool(((targets == 0) | (targets == 1)).all())
    if zero_or_one and several:
        return MULTI_LABEL
    if zero_or_one or is_class:
        kinds = "two classes or numbers" if zero_or_one else "counts, or class numbers"
        raise ValueError(
            f"the targets, {targets.dtype} of shape {tuple(targets.shape)}, may be {kinds}, with "
            f"outputs of shape {tuple(outputs.shape)}: say which by `loss`, 'bce' for two classes, "
            f"'mse', 'mae' or 'huber' for numbers; class numbers need a score for each class"
        )
    return REGRESSION


def _of_classes(outputs: Tensor, targets: Tensor) -> Task:
    second, last = outputs.shape[:1] + outputs.shape[2:], outputs.shape[:-1]
    if targets.dim() == 1:
        task = CLASSIFICATION
    elif second == targets.shape == last and outputs.dim() > 2:
        raise ValueError(
            f"the network returns {tuple(outputs.shape)} for targets of shape "
            f"{tuple(targets.shape)}, so the classes may be its second or its last axis: pass a "
            f"`loss` and a `metric` of your own"
        )
    elif targets.shape not in (second, last):
        raise ValueError(
            f"the network returns {tuple(outputs.shape)} for targets of shape "
            f"{tuple(targets.shape)}: there must be one score of each class for each target"
        )
    else:
        task = SEQUENCE if targets.dim() == 2 else SEGMENTATION
    classes_last = targets.dim() > 1 and targets.shape == last
    classes = outputs.shape[-1 if classes_last else 1]
    outside = targets[(targets < 0) | (targets >= classes)].tolist()
    outside = sorted(set(outside))
    if task is not CLASSIFICATION and len(outside) == 1 and outside[0] in (-100, -1, 255):
        return replace(task, classes_last=classes_last, ignored=outside[0])
    return replace(task, classes_last=classes_last)


def logits_of(outputs: Any) -> Tensor:
    """Return the scores of what a network returned: the tensor, or its `.logits`.

    Raises TypeError where there is no tensor.
    """
    found = outputs
    if isinstance(outputs, Mapping) and "logits" in outputs:
        found = outputs["logits"]
    elif hasattr(outputs, "logits"):
        found = outputs.logits
    if not isinstance(found, Tensor):
        raise TypeError(
            f"the network returns a {type(outputs).__name__}: it must return a tensor, or have "
            f"`.logits`"
        )
    return found


def own_loss_of(outputs: Any) -> Tensor | None:
    """Return the loss that a network has computed itself, as those of transformers do, or None."""
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    return found if isinstance(found, Tensor) else None


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


def reader(model: nn.Module) -> Callable[[Any], tuple[Any, Tensor]]:
    """Return what reads a batch as inputs, in the form of an example, and targets.

    A tuple or list has the targets last. What stands between the first item and those is passed on
    where the network's forward takes as many arguments that have no default or None, as masks are,
    and left out else, as weights are. A dict has its targets under label(s) or target(s), which the
    network gets too where its forward takes them. Any other batch is a TypeError.

    >>> reader(nn.Bilinear(2, 2, 1))([torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(3)])[0][1][0]
    tensor([1., 1.])
    """
    parameters = inspect.signature(model.forward).parameters.values()
    positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    without = inspect.Parameter.empty, None
    places = sum(each.kind in positional and each.default in without for each in parameters)
    names = {each.name for each in parameters}

    def read(batch: Any) -> tuple[Any, Tensor]:
        if isinstance(batch, Mapping):
            return _of_dict(batch, names)
        inputs, targets = inputs_and_targets(batch)
        if len(batch) > 2 and len(batch) - 1 <= places and isinstance(inputs, Tensor):
            return tuple(batch[:-1]), targets
        return inputs, targets

    return read


def target_of(batch: Any) -> Any:
    """Return the targets of a batch, whatever network it is for."""
    return _of_dict(batch, ())[1] if isinstance(batch, Mapping) else inputs_and_targets(batch)[1]


def _of_dict(batch: Mapping[str, Any], takes: Container[str]) -> tuple[dict[str, Any], Any]:
    labels = [name for name in batch if name in LABELS]
    if len(labels) != 1:
        raise TypeError(
            f"a batch is a dict of {', '.join(map(repr, batch))}: its targets must stand under one "
            f"of {', '.join(sorted(LABELS))}"
        )
    kept = {name: value for name, value in batch.items() if name != labels[0] or name in takes}
    return kept, batch[labels[0]]


@dataclass(frozen=True)
class Judge:
    """How held-out data are measured: a metric by name, a function, or one of torchmetrics."""

    metric: Metric
    measure: Any  # a name of METRICS, or the user's own
    task: Task
    loss: str | Loss | None

    @property
    def identity(self) -> str:
        """What of it decides the numbers, functions by their source."""
        return f"{self.task} {self.metric} {source_of(self.measure)}"

    def __call__(self, run: Run, batches: Iterable[Any]) -> float:
        """Return the metric; `run` gives outputs, targets and own loss of a batch.

        Raises ValueError if there are no batches.
        """
        measure = self.measure
        if hasattr(measure, "update") and hasattr(measure, "compute"):
            return self._accumulated(run, batches)
        ran = [_cpu(run(batch)) for batch in batches]
        pairs = [(outputs, targets) for outputs, targets, _ in ran]
        if not pairs:
            raise ValueError(
                f"the held-out batches are empty: there is nothing to measure {self.metric.name} on"
            )
        if measure == "loss":
            counts = [len(targets) for _, targets in pairs]
            losses = [self._loss_of(*each) for each in ran]
            return sum(c * v for c, v in zip(counts, losses, strict=True)) / sum(counts)
        outputs, targets = (torch.cat([pair[side] for pair in pairs]) for side in (0, 1))
        if callable(measure):
            return float(measure(outputs, targets))
        return _NAMED[measure](*self.task.aligned(outputs, targets), self.task)

    def _loss_of(self, outputs: Tensor, targets: Tensor, own: Tensor | None) -> float:
        if self.loss is None:
            return math.nan if own is None else float(own)
        if isinstance(self.loss, str):
            return float(LOSSES[self.loss](*self.task.aligned(outputs, targets)))
        return float(self.loss(outputs, targets))

    def _accumulated(self, run: Run, batches: Iterable[Any]) -> float:
        measure = copy.deepcopy(self.measure)
        measure.reset()
        for batch in batches:
            outputs, targets, _ = _cpu(run(batch))
            measure.update(outputs, targets)
        return float(measure.compute())


def judge_of(
    task: Task, metric: Any, loss: str | Loss | None, *, higher_is_better: bool | None
) -> Judge:
    """Return how a task is judged by a metric: a name, the user's own, or None for the usual one.

    Raises ValueError for a name of another task and for an own one of which it is not known whether
    more is better.
    """
    if metric is None or isinstance(metric, str):
        name = task.metrics[0] if metric is None else metric
        one_of(METRICS, name, "metric")
        if name not in task.metrics:
            raise ValueError(
                f"`metric` is {name!r}, and the task is {task.name}: choose from "
                f"{', '.join(task.metrics)}, or pass a function of outputs and targets"
            )
        return Judge(METRICS[name], name, task, loss)
    name = getattr(metric, "__name__", type(metric).__name__)
    known = getattr(metric, "higher_is_better", None)
    better = known if higher_is_better is None else higher_is_better
    return Judge(metric_named(name, higher_is_better=better), metric, task, loss)


def _cpu(ran: Ran) -> Ran:
    outputs, targets, own = replace_tensors(ran, lambda each: each.detach().cpu())
    return outputs.float() if outputs.dtype.is_floating_point else outputs, targets, own


def _classes(outputs: Tensor, targets: Tensor, task: Task) -> tuple[Any, Any]:
    """Return predicted and true classes that count, flat; of labels a row each."""
    if task.name not in _OF_CLASSES:
        return (outputs > 0).long().numpy(), targets.long().numpy()
    counts = targets != IGNORED
    return outputs.argmax(1)[counts].numpy(), targets[counts].numpy()


def _accuracy(outputs: Tensor, targets: Tensor, task: Task) -> float:
    predicted, true = _classes(outputs, targets, task)
    return float((predicted == true).mean())


def _f1(outputs: Tensor, targets: Tensor, task: Task) -> float:
    from sklearn.metrics import f1_score  # noqa: PLC0415  a second, needed only here

    predicted, true = _classes(outputs, targets, task)
    average = "binary" if task is BINARY else "macro"
    return float(f1_score(true, predicted, average=average, zero_division=0.0))


def _iou(outputs: Tensor, targets: Tensor, task: Task) -> float:
    from sklearn.metrics import jaccard_score  # noqa: PLC0415  as above

    predicted, true = _classes(outputs, targets, task)
    return float(jaccard_score(true, predicted, average="macro", zero_division=0.0))


def _r2(outputs: Tensor, targets: Tensor, _task: Task) -> float:
    from sklearn.metrics import r2_score  # noqa: PLC0415  as above

    outputs, targets = (each.flatten(1) if each.dim() > 1 else each for each in (outputs, targets))
    return float(r2_score(targets.numpy(), outputs.numpy()))


_NAMED: dict[str, Callable[[Tensor, Tensor, Task], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "iou": _iou,
    "mse": lambda outputs, targets, _: float(F.mse_loss(outputs, targets)),
    "mae": lambda outputs, targets, _: float(F.l1_loss(outputs, targets)),
    "r2": _r2,
}
