"""`Task`: what a network is asked to do, by its targets and outputs; its losses and metrics."""

import copy
import inspect
import math
from collections.abc import Callable, Container, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.batches import LABELS
from bnkit.experiments.metrics import Metric, metric_named
from bnkit.names import one_of
from bnkit.source_code import source_of

Loss = Callable[[Tensor, Tensor], Tensor]
Ran = tuple[Tensor, Tensor, Tensor | None]  # outputs, targets, and the network's own loss
Run = Callable[[Any], Ran]

IGNORED = -100  # torch's own ignore_index: padding and pixels without a class
MARKS = frozenset({IGNORED, -1, 255})  # what stands for it in data sets


def _per_class_sigmoid(outputs: Tensor, targets: Tensor) -> Tensor:
    wanted = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, wanted)


def _sigmoid(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.dim() == 1:
        return F.cross_entropy(outputs, targets)
    # The mean over the targets that count, of which a batch of padding has none: torch has NaN.
    summed = F.cross_entropy(outputs, targets, reduction="sum")
    return summed / (targets != IGNORED).sum().clamp(min=1)


LOSSES: dict[str, Loss] = {
    "cross-entropy": _cross_entropy,
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
            if targets.dtype is not torch.int64:
                targets = targets.long()
            if self.ignored != IGNORED:
                targets = targets.masked_fill(targets == self.ignored, IGNORED)
            if targets.dim() > 1 and self == CLASSIFICATION:
                targets = targets.reshape(len(outputs))  # of a column
        elif self != OWN:
            # Integers and float64 meet float32: of another kind, losses have no gradient.
            kind = torch.promote_types(outputs.dtype, torch.float32)
            targets = targets.reshape(outputs.shape).to(kind)
        return outputs, targets

    def counted(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is predicted and what is true, a row for each target that counts."""
        outputs, targets = self.aligned(outputs, targets)
        if self.name in _OF_CLASSES:
            predicted, targets = outputs.argmax(1).flatten(), targets.flatten()
            counts = targets != IGNORED
            return (predicted, targets) if counts.all() else (predicted[counts], targets[counts])
        if self == REGRESSION:
            return outputs, targets
        predicted, true = (outputs > 0).long(), targets.long()
        if self == MULTI_LABEL:
            return predicted, true
        return predicted.flatten(), true.flatten()


_OF_CLASSES = ("classification", "segmentation", "sequence labelling")
_CLASSES_OF_ONE = ("cross-entropy", "sigmoid-cross-entropy")
CLASSIFICATION = Task(
    "classification", "cross-entropy", ("accuracy", "f1", "loss"), _CLASSES_OF_ONE
)
BINARY = Task("binary classification", "bce", ("accuracy", "f1", "loss"), ("bce",))
BINARY_MASKS = Task("binary segmentation", "bce", ("iou", "f1", "accuracy", "loss"), ("bce",))
MULTI_LABEL = Task("multi-label classification", "bce", ("f1", "accuracy", "loss"), ("bce",))
REGRESSION = Task("regression", "mse", ("mse", "mae", "r2", "loss"), ("mse", "mae", "huber"))
SEGMENTATION = Task(
    "segmentation", "cross-entropy", ("iou", "accuracy", "f1", "loss"), ("cross-entropy",)
)
SEQUENCE = Task(
    "sequence labelling", "cross-entropy", ("accuracy", "f1", "loss"), ("cross-entropy",)
)
OWN = Task("of your own", "", ("loss",), ())  # its loss and its metric are the user's


def task_of(outputs: Any, targets: Tensor, *, loss: Any = None, marks: Iterable[int] = ()) -> Task:
    """Return the task that a mini-batch shows; `loss`, a name, decides where two are possible.

    `marks` are numbers of MARKS that other mini-batches hold. Raises ValueError where two tasks are
    possible and `loss` does not decide, and for shapes that fit none.

    >>> task_of(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])).name
    'classification'
    >>> task_of(torch.zeros(4, 1), torch.randn(4)).name
    'regression'
    """
    shapes = f"the network returns {tuple(outputs.shape)} for targets of {targets.dtype} of shape "
    shapes += f"{tuple(targets.shape)}"
    is_class = not targets.dtype.is_floating_point
    alike = _without_ones(outputs) == _without_ones(targets)
    if is_class and not alike and outputs.dim() == 2 and targets.numel() == len(targets):
        return CLASSIFICATION
    if is_class and not alike and outputs.dim() == targets.dim() + 1:
        return _of_classes(outputs, targets, {*marks})
    if not alike:
        raise ValueError(
            f"{shapes}: numbers need outputs of their shape, class numbers an integer type, as by "
            f"targets.long(), and one axis more, of scores"
        )
    if loss in ("mse", "mae", "huber"):
        return REGRESSION
    several = targets.dim() == 2 and targets.shape[1] > 1
    if loss == "bce":
        return MULTI_LABEL if several else BINARY if targets.dim() <= 2 else BINARY_MASKS
    zero_or_one = bool(((targets == 0) | (targets == 1)).all())
    if zero_or_one and several:
        if bool((targets.sum(1) == 1).all()):
            raise ValueError(
                f"{shapes}, with a single 1 in each row, so they may be classes or labels: pass "
                f"class numbers, targets.argmax(1), or loss='bce' where a sample may have several "
                f"labels"
            )
        return MULTI_LABEL
    if zero_or_one or is_class:
        kinds = "two classes or numbers" if zero_or_one else "counts, or class numbers"
        raise ValueError(
            f"the targets, {targets.dtype} of shape {tuple(targets.shape)}, may be {kinds}, with "
            f"outputs of shape {tuple(outputs.shape)}: say which by `loss`, 'bce' for two classes, "
            f"'mse', 'mae' or 'huber' for numbers; class numbers need a score for each class"
        )
    return REGRESSION


def _without_ones(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape without axes of one, which are no difference: columns, single channels."""
    samples, *others = tensor.shape
    return samples, *(size for size in others if size != 1)


def _of_classes(outputs: Tensor, targets: Tensor, marks: AbstractSet[int]) -> Task:
    second, last = outputs.shape[:1] + outputs.shape[2:], outputs.shape[:-1]
    if second == targets.shape == last and outputs.dim() > 2:
        raise ValueError(
            f"the network returns {tuple(outputs.shape)} for targets of shape "
            f"{tuple(targets.shape)}, so the classes may be its second or its last axis: pass a "
            f"`loss` and a `metric` of your own"
        )
    if targets.shape not in (second, last):
        raise ValueError(
            f"the network returns {tuple(outputs.shape)} for targets of shape "
            f"{tuple(targets.shape)}: there must be one score of each class for each target"
        )
    task = SEQUENCE if targets.dim() == 2 else SEGMENTATION
    classes_last = targets.shape == last
    classes = outputs.shape[-1 if classes_last else 1]
    here = targets[(targets < 0) | (targets >= classes)].tolist()
    outside = sorted({*here, *(mark for mark in marks if not 0 <= mark < classes)})
    if len(outside) > 1 or not MARKS.issuperset(outside):
        raise ValueError(
            f"the targets hold {', '.join(map(str, outside[:5]))}, and the network has scores of "
            f"{classes} classes, from 0: one of -100, -1 and 255 may stand for what is not counted"
        )
    return replace(task, classes_last=classes_last, ignored=outside[0] if outside else IGNORED)


def logits_of(outputs: Any) -> Tensor:
    """Return the scores of what a network returned: the tensor, or its `.logits`.

    Raises TypeError where there is no tensor.
    """
    if isinstance(outputs, Tensor):  # asked first: a tensor is slow to say what it has not
        return outputs
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
        # To ask whether a tuple or a list is a Mapping takes longer than to read it.
        if not isinstance(batch, tuple | list) and isinstance(batch, Mapping):
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
        ran = (_cpu(run(batch)) for batch in batches)
        if hasattr(measure, "update") and hasattr(measure, "compute"):
            return self._accumulated(ran)
        found = [*ran]
        if not found:
            raise ValueError(
                f"the held-out batches are empty: there is nothing to measure {self.metric.name} on"
            )
        if measure == "loss":
            losses = [self._loss_of(*each) for each in found]
            total = sum(count for count, _ in losses)
            self._check_counted(total)
            return sum(count * loss for count, loss in losses) / total
        if any(_is_lost(outputs) for outputs, _, _ in found):
            return math.nan
        pairs = [(outputs, targets) for outputs, targets, _ in found]
        if callable(measure):
            return float(measure(*self._joined(pairs)))
        predicted, true = self._joined([self.task.counted(*pair) for pair in pairs])
        self._check_counted(len(true))
        return _NAMED[measure](predicted, true, self.task)

    def _loss_of(self, outputs: Tensor, targets: Tensor, own: Tensor | None) -> tuple[int, float]:
        """Return the loss of a batch and how many targets it is the mean over."""
        if self.loss is None:
            return len(targets), math.nan if own is None else float(own)
        if not isinstance(self.loss, str):
            return len(targets), float(self.loss(outputs, targets))
        outputs, targets = self.task.aligned(outputs, targets)
        return int((targets != IGNORED).sum()), float(LOSSES[self.loss](outputs, targets))

    def _joined(self, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return all batches as one; of other lengths only where each number counts for itself."""
        shapes = [outputs.shape[1:] for outputs, _ in pairs]
        other = next((shape for shape in shapes if shape != shapes[0]), None)
        if other is not None:
            if self.measure not in ("mse", "mae"):
                raise ValueError(
                    f"the outputs of the held-out batches have shapes {(-1, *shapes[0])} and "
                    f"{(-1, *other)}, which {self.metric.name} cannot take together: pad them to "
                    f"one length, or pass an object of torchmetrics"
                )
            pairs = [(outputs.flatten(), targets.flatten()) for outputs, targets in pairs]
        outputs, targets = zip(*pairs, strict=True)
        return torch.cat(outputs), torch.cat(targets)

    def _check_counted(self, count: int) -> None:
        if not count:
            raise ValueError(
                f"all targets of the held-out batches are {self.task.ignored}, which is not "
                f"counted: there is nothing to measure {self.metric.name} on"
            )

    def _accumulated(self, ran: Iterable[Ran]) -> float:
        measure = copy.deepcopy(self.measure)
        measure.reset()
        for outputs, targets, _ in ran:
            if _is_lost(outputs):
                return math.nan
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
    outputs, targets, own = ran
    outputs, targets = outputs.detach().cpu(), targets.detach().cpu()
    own = None if own is None else own.detach().cpu()
    return outputs.float() if outputs.dtype.is_floating_point else outputs, targets, own


def _is_lost(outputs: Tensor) -> bool:
    """Return whether a network has diverged; -inf may be the score of a class that is left out."""
    return outputs.numel() > 0 and not outputs.max() < math.inf  # NaN is the largest, and not less


def _accuracy(predicted: Tensor, true: Tensor, _task: Task) -> float:
    return int((predicted == true).sum()) / true.numel()


def _f1(predicted: Tensor, true: Tensor, task: Task) -> float:
    from sklearn.metrics import f1_score  # noqa: PLC0415  a second, needed only here

    average = "binary" if task in (BINARY, BINARY_MASKS) else "macro"
    return float(f1_score(true.numpy(), predicted.numpy(), average=average, zero_division=0.0))


def _iou(predicted: Tensor, true: Tensor, task: Task) -> float:
    from sklearn.metrics import jaccard_score  # noqa: PLC0415  as above

    average = "binary" if task == BINARY_MASKS else "macro"
    found = jaccard_score(true.numpy(), predicted.numpy(), average=average, zero_division=0.0)
    return float(found)


def _r2(predicted: Tensor, true: Tensor, _task: Task) -> float:
    from sklearn.metrics import r2_score  # noqa: PLC0415  as above

    if not predicted.isfinite().all():
        return math.nan
    # In float64, in which the square of a number that float32 holds is finite.
    predicted, true = (each.double().reshape(len(each), -1) for each in (predicted, true))
    return float(r2_score(true.numpy(), predicted.numpy()))


_NAMED: dict[str, Callable[[Tensor, Tensor, Task], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "iou": _iou,
    "mse": lambda predicted, true, _: float(F.mse_loss(predicted, true)),
    "mae": lambda predicted, true, _: float(F.l1_loss(predicted, true)),
    "r2": _r2,
}
