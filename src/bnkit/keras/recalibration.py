"""`recalibrate`: moving statistics of a Keras model replaced by those of the data."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch

from bnkit.batches import number_of
from bnkit.keras.batches import inputs_in, refuse_iterator
from bnkit.keras.graph import check_graph
from bnkit.keras.kernels import Array, array_of, tensor_of
from bnkit.keras.observation import (
    Statistics,
    infer,
    normalising_by,
    statistics_of,
    write_statistics,
)
from bnkit.keras.rebuilding import rebuilt
from bnkit.keras.roles import batch_norms_of, objection_to_class
from bnkit.moments import Moments
from bnkit.norms import NOT_CHOSEN
from bnkit.notebooks import Shown
from bnkit.progress import counted
from bnkit.recalibration.shifts import LayerShift, table_of_shifts
from bnkit.tables import frame_of

Estimator = Literal["batch_statistics", "layer_by_layer"]
Where = Callable[[str, Any], bool]


@dataclass(frozen=True)
class Recalibration(Shown):
    """New moving statistics of the batch norms of a Keras model, measured but not yet applied.

    `layers` says how far each layer's old statistics were off, `left_alone` gives by their paths
    the reasons why others stay as they are. Prints as a table.
    """

    estimator: str
    layers: tuple[LayerShift, ...]
    left_alone: Mapping[str, str]
    new: Mapping[str, Statistics] = field(repr=False, compare=False)

    def apply(self, model: Any) -> Any:
        """Return a copy of `model` with the new statistics; `model` stays as it is.

        Raises ValueError for a model without one of these layers.
        """
        check_graph(model)
        copy = rebuilt(model, {})
        layers = batch_norms_of(copy)
        for path, (mean, _) in self.new.items():
            if path not in layers or layers[path].moving_mean.shape != mean.shape:
                raise ValueError(
                    f"`model` has no BatchNormalization '{path}' of {len(mean)} features: its "
                    f"statistics were measured on another model"
                )
        for path, statistics in self.new.items():
            write_statistics(layers[path], statistics)
        return copy

    def to_json(self) -> dict[str, Any]:
        """Return estimator, shifts and layers left alone as plain data."""
        rows = [asdict(shift) for shift in self.layers]
        return {
            "estimator": self.estimator,
            "layers": rows,
            "left_alone": dict(self.left_alone),
        }

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row for each layer; MissingExtraError without pandas."""
        return frame_of(asdict(shift) for shift in self.layers)

    def __str__(self) -> str:
        return table_of_shifts(self.layers, self.left_alone)


def recalibrate(
    model: Any,
    batches: Any,
    *,
    where: Where | None = None,
    estimator: Estimator = "batch_statistics",
    progress: bool = True,
) -> Any:
    """Return a copy of a Keras `model` whose batch norms hold the statistics of `batches`.

    Keras' moving averages (momentum 0.99) lag behind the weights. This replaces them by the mean
    and the biased variance, which is what Keras stores, of all inputs of each layer, pooled exactly
    over mini-batches of any sizes, in float64. Values that a mask leaves out of a layer's own
    statistics are left out here, too. `batches` is what `bnkit.keras.batches.inputs_in` takes.

    "batch_statistics" makes one pass, in which each batch norm normalises by the statistics of the
    mini-batch, as in training; all else runs as in inference. "layer_by_layer" is exact for
    inference: it makes a pass for each layer, with all layers before it on their new statistics.

    Frozen batch norms (trainable=False) stay as they are. `where(path, layer)` chooses among the
    others. `model` stays as it is; the copy is not compiled.

    Raises TypeError and ValueError for a model that is not Sequential or Functional or not built,
    ValueError for a model without batch norms to measure, for values that are not finite and for
    `batches` that are empty.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization()])
    >>> good = recalibrate(model, [np.array([[1.0], [2.0]]), np.array([[6.0]])])
    >>> [float(array_of(w)[0]) for w in good.layers[0].non_trainable_weights]
    [3.0, 4.666666507720947]
    """
    return plan_recalibration(
        model, batches, where=where, estimator=estimator, progress=progress
    ).apply(model)


def plan_recalibration(
    model: Any,
    batches: Any,
    *,
    where: Where | None = None,
    estimator: Estimator = "batch_statistics",
    progress: bool = True,
) -> Recalibration:
    """Return what `recalibrate` would do: the new statistics, and how far the old ones are off."""
    check_graph(model)
    if estimator not in get_args(Estimator):
        raise ValueError(f"`estimator` is {estimator!r}: choose from {get_args(Estimator)}")
    if estimator == "layer_by_layer":
        refuse_iterator(batches, "this estimator makes one pass for each layer")
    objections = {
        path: objection_to_measuring(layer) if chosen else NOT_CHOSEN
        for path, layer in batch_norms_of(model).items()
        for chosen in [where is None or where(path, layer)]
    }
    left_alone = {path: why for path, why in objections.items() if why is not None}
    copy = rebuilt(model, {})
    layers = {path: x for path, x in batch_norms_of(copy).items() if path not in left_alone}
    if not layers:
        reasons = "; ".join(f"{path}: {why}" for path, why in list(left_alone.items())[:8])
        raise ValueError(
            f"there is nothing to measure: {reasons or 'the model has no BatchNormalization'}"
        )
    begun = time.monotonic()

    def run(waiting: dict[str, Any], until: str | None) -> dict[str, _Sample]:
        found = counted(
            inputs_in(copy, batches),
            "measuring statistics",
            total=number_of(batches),
            begun=begun,
            shown=progress,
        )
        return _measured(copy, waiting, found, until)

    old = {path: statistics_of(layer) for path, layer in layers.items()}
    samples = run(layers, None)
    if estimator == "layer_by_layer":
        waiting = dict(layers)
        for place, path in enumerate(list(samples)):
            if place:
                samples |= run(waiting, path)
            write_statistics(waiting.pop(path), samples[path].statistics)
    idle = [path for path in layers if path not in samples]
    return Recalibration(
        estimator,
        tuple(
            _shift(path, layers[path], old[path], samples[path])
            for path in layers
            if path in samples
        ),
        {**left_alone, **dict.fromkeys(idle, "it did not run on these mini-batches")},
        {path: sample.statistics for path, sample in samples.items()},
    )


@dataclass(frozen=True, eq=False)
class _Sample:
    """The moments of a layer's inputs, and how many inputs those were."""

    moments: Moments
    inputs: int = 1

    def __add__(self, other: "_Sample") -> "_Sample":
        return _Sample(self.moments + other.moments, self.inputs + other.inputs)

    @property
    def statistics(self) -> Statistics:
        """Mean and biased variance, as Keras stores them; (C,) each."""
        return self.moments.mean.numpy(), self.moments.variance.numpy()


class _Stop(Exception):  # noqa: N818  not an error: a forward has shown what it was run for
    """A forward has come to the layer that it runs for."""


def _measured(
    model: Any, layers: dict[str, Any], batches: Any, until: str | None
) -> dict[str, _Sample]:
    """Return the samples of `layers` in the order in which they ran, or that of `until` alone.

    Meanwhile each layer normalises by the statistics of its input, which are written into it.
    """
    samples: dict[str, _Sample] = {}

    def see(path: str, x: Any, mask: Any) -> Statistics:
        found = _Sample(moments_of_input(layers[path], x, mask, path))
        if until is None or path == until:
            samples[path] = samples[path] + found if path in samples else found
        if path == until:
            raise _Stop
        return found.statistics

    with normalising_by(layers, see):
        for inputs in batches:
            with suppress(_Stop):
                infer(model, inputs)
    return samples


def moments_of_input(layer: Any, x: Any, mask: Any, path: str) -> Moments:
    """Return the moments of what a batch norm gets, without values that the mask leaves out.

    Raises ValueError where they are not finite.

    >>> import keras
    >>> layer = keras.layers.BatchNormalization()
    >>> x, mask = np.array([[[1.0], [3.0]], [[5.0], [9.0]]]), np.array([[1, 1], [1, 0]])
    >>> moments_of_input(layer, x, mask, "").mean.item()
    3.0
    """
    if mask is None:
        moments = Moments.of(tensor_of(x), channel_axis=layer.axis)
    else:
        values, chosen = _values_and_chosen(layer, x, mask)
        moments = Moments.of(torch.from_numpy(values[chosen]))
    if not moments.deviations.isfinite().all():
        raise ValueError(
            f"layer '{path}' gets values that are not finite (NaN, infinite, or too large for "
            f"their squares): leave that mini-batch out of `batches`, or fix what comes before"
        )
    return moments


def moments_of_rows(layer: Any, x: Any, mask: Any) -> Moments:
    """Return the moments of the means of the rows of what a batch norm gets, as above.

    >>> import keras
    >>> layer = keras.layers.BatchNormalization()
    >>> x, mask = np.array([[[1.0], [3.0]], [[5.0], [9.0]]]), np.array([[1, 1], [1, 0]])
    >>> moments_of_rows(layer, x, mask).mean.item()
    3.5
    """
    values, chosen = _values_and_chosen(layer, x, mask)
    counts = chosen.reshape(len(values), -1).sum(1)[:, None]  # (N, 1)
    kept = np.where(chosen[..., None], values, 0.0).reshape(len(values), -1, values.shape[-1])
    means = kept.sum(1)[counts[:, 0] > 0] / counts[counts > 0][:, None]
    return Moments.of(torch.from_numpy(means))


def _values_and_chosen(layer: Any, x: Any, mask: Any) -> tuple[Array, Array]:
    """Return the input (N, …, C), and which of its (N, …) places count."""
    values = np.ascontiguousarray(np.moveaxis(array_of(x), layer.axis, -1))
    if mask is None:
        return values, np.ones(values.shape[:-1], bool)
    return values, np.broadcast_to(array_of(mask).astype(bool), values.shape[:-1])


def objection_to_measuring(layer: Any) -> str | None:
    """Return why the statistics of a batch norm are not those of its inputs, None if they are.

    >>> import keras
    >>> objection_to_measuring(keras.layers.BatchNormalization(trainable=False))
    'frozen: its trainable is False'
    """
    if not layer.trainable:
        return "frozen: its trainable is False"
    if layer.synchronized:
        return "it is synchronized: its statistics are those of several devices"
    if getattr(layer, "renorm", False):
        return "it renormalises: its own averages belong to its statistics"
    return objection_to_class(layer)


def _shift(path: str, layer: Any, old: Statistics, sample: _Sample) -> LayerShift:
    mean, variance = sample.statistics
    spread = variance + layer.epsilon
    ratio = (old[1] + layer.epsilon) / spread
    return LayerShift(
        path,
        type(layer).__name__,
        float((np.abs(old[0] - mean) / np.sqrt(spread)).max()),
        float(ratio.min()),
        float(ratio.max()),
        sample.inputs,
        sample.moments.count,
    )
