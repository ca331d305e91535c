"""`fit`: trains a compiled Keras model by `train_on_batch`, and measures it in both modes."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from bnkit.experiments.results import Curve
from bnkit.experiments.training import Trained
from bnkit.experiments.trial_logs import Tell
from bnkit.keras.batches import Pair, pairs_in
from bnkit.keras.observation import Statistics, normalising_by, statistics_of, write_statistics
from bnkit.keras.recalibration import moments_of_input, objection_to_measuring
from bnkit.keras.roles import batch_norms_of
from bnkit.keras.settings import KerasSettings

EVALUATED = 1000  # rows of arrays that are measured at a time


def fit(
    model: Any,
    train: Any,
    held_out: Any,
    settings: KerasSettings,
    *,
    metric: str,
    steps: int,
    order: np.random.Generator | None,
    tell: Tell = lambda _step, _numbers: None,
) -> Trained:
    """Return the curve of a compiled `model`, trained in place, by Keras' own steps.

    It is measured on `held_out` every `evaluate_every` steps and at the end, by `metric` of
    `test_on_batch`, and by that of the mini-batches' own statistics where the settings ask for it.
    A run whose mean loss since the last evaluation is not finite has diverged, and ends there. The
    time of a step is the mean without that of the first, in which jax and TensorFlow compile.
    """
    curve, seconds, timed = Curve(), 0.0, 0
    batches = _endless(train, settings.batch_size, order)
    model.reset_metrics()
    began = time.perf_counter()
    for step in range(1, steps + 1):
        x, y, weights = next(batches)
        logs = model.train_on_batch(x, y, sample_weight=weights, return_dict=True)
        if step == 1:
            began = time.perf_counter()
        else:
            timed += 1
        if step % settings.evaluate_every and step != steps:
            continue
        seconds += time.perf_counter() - began
        loss = float(logs["loss"])
        curve = _extended(curve, step, loss, model, held_out, settings, metric)
        tell(step, {"loss": curve.loss[-1], metric: curve.metric[-1]})
        mean_time = seconds / timed if timed else 0.0
        if not math.isfinite(loss):
            reason = f"the training loss was {loss} before step {step}"
            return Trained("diverged", reason, curve, step, mean_time * step)
        model.reset_metrics()
        began = time.perf_counter()
    return Trained("finished", "", curve, steps, mean_time * steps)


def measured(model: Any, data: Any, metric: str) -> float:
    """Return a metric of `data` in inference, by Keras' own `test_on_batch`."""

    def test(x: Any, y: Any, weights: Any) -> float:
        return float(model.test_on_batch(x, y, sample_weight=weights, return_dict=True)[metric])

    return _last(model, data, test)


def measured_by_mini_batches(model: Any, data: Any, metric: str) -> float:
    """Return a metric of `data` where batch norms normalise by the mini-batch; dropout is off.

    The model stays as it is, but for the state of its metrics.
    """
    loss = rows = 0.0

    def test(x: Any, y: Any, weights: Any) -> float:
        nonlocal loss, rows
        outputs = model(x, training=False)
        found = model.compute_metrics(x, y, outputs, sample_weight=weights)
        if metric != "loss":
            return float(found[metric])
        of_batch = model.compute_loss(x, y, outputs, sample_weight=weights, training=False)
        count = len(_first_leaf(y))
        loss, rows = loss + float(of_batch) * count, rows + count
        return loss / rows

    with torch.no_grad(), _by_mini_batches(model):
        return _last(model, data, test)


def _last(model: Any, data: Any, test: Callable[..., float]) -> float:
    """Return what `test` returns for the last mini-batch; metrics count from the first one."""
    model.reset_metrics()
    found = None
    for pair in pairs_in(data, EVALUATED):
        found = test(*pair)
    if found is None:
        raise ValueError("the test data are empty: there is nothing to measure on")
    return found


def _extended(
    curve: Curve,
    step: int,
    loss: float,
    model: Any,
    held_out: Any,
    settings: KerasSettings,
    metric: str,
) -> Curve:
    value = measured(model, held_out, metric)
    own: tuple[float | None, ...] = ()
    if settings.training_mode_accuracy:
        normalised = bool(batch_norms_of(model))
        by_batch = measured_by_mini_batches(model, held_out, metric) if normalised else value
        own = (_finite(by_batch),)
    return Curve(
        steps=(*curve.steps, step),
        loss=(*curve.loss, _finite(loss)),
        metric=(*curve.metric, _finite(value)),
        training_mode_metric=(*curve.training_mode_metric, *own),
    )


def _endless(train: Any, batch_size: int, order: np.random.Generator | None) -> Iterator[Pair]:
    while True:
        pair = None
        for pair in pairs_in(train, batch_size, order=order):
            yield pair
        if pair is None:
            raise ValueError(
                "the training data are empty, or an iterator that is used up after one pass"
            )


@contextmanager
def _by_mini_batches(model: Any) -> Iterator[None]:
    """Let the batch norms of a model normalise by the mini-batch, and give their own back."""
    layers = {
        path: layer
        for path, layer in batch_norms_of(model).items()
        if objection_to_measuring(layer) is None
    }
    kept = {path: statistics_of(layer) for path, layer in layers.items()}

    def see(path: str, x: Any, mask: Any) -> Statistics | None:
        try:
            moments = moments_of_input(layers[path], x, mask, path)
        except ValueError:  # not finite: the outputs say so
            return None
        return moments.mean.numpy(), moments.variance.numpy()

    try:
        with normalising_by(layers, see):
            yield
    finally:
        for path, layer in layers.items():
            write_statistics(layer, kept[path])


def _first_leaf(tree: Any) -> Any:
    while isinstance(tree, dict | list | tuple):
        tree = next(iter(tree.values())) if isinstance(tree, dict) else tree[0]
    return tree


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
