"""`Record`: what one batch norm did in a step, from its channels; `NonFinite`: NaN reached it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from bnkit.diagnosis.rules.parameters import DEAD
from bnkit.tables import path_or_model, text_table

Array = npt.NDArray[np.float64]

# Between the 15th and the 85th percentile of a normal distribution, in standard deviations.
_WIDTH = 2.0729

PERCENTS = (15, 50, 85)  # Ioffe and Szegedy 2015, figure 1
Percentiles = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Record:
    """What one batch norm did in one training step.

    `step` counts from 0. `input` and `output` are the 15th, 50th and 85th percentile of what a
    typical unit is given and hands to the nonlinearity: those of each channel over the mini-batch,
    then the median over the channels. Drifts say how far they have moved since the record before,
    in standard deviations of that record. `lag` is how far the running statistics, before this
    mini-batch entered them, are from the mini-batch's, in running standard deviations;
    `lag_by_chance` is how large that is if they are perfect, because both are averages over few
    rows. `never_positive` is the share of channels whose output is never over 0 in the mini-batch,
    so that a ReLU hands nothing on; `switched_off` that of channels with γ of under a hundredth of
    the layer's typical one. Gradients are Euclidean norms: of γ, of β and of the layer's output.

    NaN stands for what there is not: the drift of a first record, the lag of a layer without
    running statistics or with a mask, the gradient of a step without a backward, and for what NaN
    has spoilt.
    """

    step: int
    layer: str
    input: Percentiles
    output: Percentiles
    input_drift: float
    output_drift: float
    lag: float
    lag_by_chance: float
    never_positive: float
    switched_off: float
    weight_gradient: float
    bias_gradient: float
    output_gradient: float

    def scalars(self) -> Iterator[tuple[str, float]]:
        """Yield the names and values of all numbers, percentiles one by one, in their order.

        >>> nothing = [float("nan")] * 9
        >>> record = Record(0, "1", (-1.0, 0.0, 1.0), (-0.5, 0.0, 0.5), *nothing)
        >>> [name for name, value in record.scalars() if value > 0]
        ['input_85', 'output_85']
        """
        for name in [field.name for field in fields(self)][2:]:
            value = getattr(self, name)
            if isinstance(value, tuple):
                yield from zip((f"{name}_{p}" for p in PERCENTS), value, strict=True)
            else:
                yield name, value


@dataclass(frozen=True)
class NonFinite:
    """NaN or infinity that reached a batch norm in one of the steps `first` to `last`.

    `batches` is how many mini-batches bnkit's guard kept out of the running statistics (0 for a
    layer without it), `channels` in how many the running statistics, or the input of the last of
    these steps, are not finite.
    """

    layer: str
    first: int
    last: int
    batches: int
    channels: int

    def __str__(self) -> str:
        when = f"step {self.last}" if self.first == self.last else f"steps {self.first}–{self.last}"
        layer = f"layer '{self.layer}'" if self.layer else "the model"
        kept_out = f", {self.batches} mini-batches kept out" if self.batches else ""
        held = f", {self.channels} channels not finite" if self.channels else ""
        return f"NaN or infinity reached {layer} in {when}{kept_out}{held}."


def table_of(records: Sequence[Record]) -> str:
    """Return a table of these records, one a row.

    >>> record = Record(0, "1", (-1.0, 0.0, 1.0), (-0.5, 0.0, 0.5), *[float("nan")] * 9)
    >>> table_of([record]).splitlines()[-1].split()[:9]
    ['1', '-1', '0', '1', '–', '-0.5', '0', '0.5', '–']
    """
    first, *others = (f"{p}%" for p in PERCENTS)
    headers = ["layer", f"in {first}", *others, "drift", f"out {first}", *others, "drift", "lag"]
    headers += ["by chance", "≤ 0", "γ ≈ 0", "|∂γ|", "|∂β|", "|∂y|"]
    return text_table(headers, map(_row, records), width=140)


def _row(record: Record) -> tuple[str, ...]:
    numbers = [*record.input, record.input_drift, *record.output, record.output_drift]
    numbers += [record.lag, record.lag_by_chance]
    gradients = (record.weight_gradient, record.bias_gradient, record.output_gradient)
    return (
        path_or_model(record.layer),
        *map(_number, numbers),
        *(_number(share, "{:.0%}") for share in (record.never_positive, record.switched_off)),
        *map(_number, gradients),
    )


def _number(value: float, form: str = "{:.2g}") -> str:
    return "–" if math.isnan(value) else form.format(value)


# What a record says of layers: their channels' numbers drawn together, layers at once, in numpy


def descriptions(
    layers: Sequence[nn.Module], channels: dict[str, Array], before: Sequence[Array | None]
) -> list[dict[str, Any]]:
    """Return what a `Record` says of each of L layers, but for gradients, by its names.

    `channels` has the arrays (L, C) of `Channels`; `before` percentiles (2, C, 3) or None.
    """
    percentiles = channels["percentiles"]
    drifts = _drifts(percentiles, before)
    eps = np.array([[getattr(layer, "eps", 0.0)] for layer in layers])
    momentum = np.array([[getattr(layer, "momentum", None) or 0.0] for layer in layers])
    off, by_chance = lag(channels, eps, momentum)
    numbers = {
        "input_drift": drifts[:, 0],
        "output_drift": drifts[:, 1],
        "lag": off,
        "lag_by_chance": by_chance,
        "never_positive": never_positive(channels["largest"]),
        "switched_off": switched_off(channels["weight"]),
    }
    rows = zip(*(values.tolist() for values in numbers.values()), strict=True)
    return [
        {"input": tuple(given), "output": tuple(out), **dict(zip(numbers, row, strict=True))}
        for (given, out), row in zip(typical(percentiles).tolist(), rows, strict=True)
    ]


def typical(percentiles: Array) -> Array:
    """Return the percentiles (..., 3) of a typical channel, the medians of (..., C, 3)."""
    return _median(percentiles.swapaxes(-1, -2))


def drift(now: Array, before: Array) -> Array:
    """Return how far the percentiles (..., C, 3) of a typical channel moved, in deviations, (...).

    The root mean square over the three, in standard deviations of a normal distribution with the
    percentiles from before; of channels that vary, the median.

    >>> before = np.tile([-1.0, 0.0, 1.0], (2, 4, 1))
    >>> drift(before + 1, before).round(4)
    array([1.0365, 1.0365])
    """
    deviations = (before[..., 2] - before[..., 0]) / _WIDTH
    deviations[~(deviations > 0)] = np.nan
    return _median(np.sqrt(_mean(np.square(now - before))) / deviations)


def _drifts(now: Array, before: Sequence[Array | None]) -> Array:
    """Return the drifts (L, 2) of `now` (L, 2, C, 3), NaN where there is nothing from before."""
    nothing = np.full(now.shape[1:], np.nan)
    fitting = [nothing if b is None or b.shape != nothing.shape else b for b in before]
    if all(b is nothing for b in fitting):
        return np.full(now.shape[:2], np.nan)
    return drift(now, np.stack(fitting))


def lag(channels: dict[str, Any], eps: Array | float, momentum: Array | float) -> tuple[Any, Any]:
    """Return how far the running statistics are off, and how far they are by chance, (...).

    Arrays are (..., C), `eps` and `momentum` (..., 1). With batch mean μ and variance v, running m
    and r, eps in both variances, the lag is √(mean over channels of ((μ − m)² + (√v − √r)²) / r).
    By chance the squared error of μ is the unbiased variance of the rows' means over their number,
    that of √v half as much for normal values, and that of an average by momentum a adds a / (2 − a)
    of both.

    >>> batch, running = (np.array([4.0]), np.array([1.0])), (np.array([0.0]), np.array([1.0]))
    >>> channels = dict(zip(["mean", "variance", "running_mean", "running_var"], batch + running))
    >>> [off.item() for off in lag({**channels, "squared_error": np.array([0.5])}, 0.0, 0.0)]
    [4.0, 0.8660254037844386]
    """
    running, batch = channels["running_var"] + eps, channels["variance"] + eps
    moved = np.square(channels["mean"] - channels["running_mean"])
    moved += np.square(np.sqrt(batch) - np.sqrt(running))
    error = 1.5 * channels["squared_error"] * (1 + momentum / (2 - momentum))
    return np.sqrt(_mean(moved / running)), np.sqrt(_mean(error / running))


def never_positive(largest: Array) -> Array:
    """Return the share of the C channels whose largest output (..., C) is not over 0.

    >>> never_positive(np.array([0.0, 2.0, np.nan, -1.0])).item()  # NaN is not known to be dead
    0.5
    """
    return _mean(largest <= 0)


def switched_off(weight: Array) -> Array:
    """Return the share of the C channels that γ (..., C) switches off, NaN where all γ are.

    It counts as the rule `dead-channels` does.

    >>> switched_off(np.array([1.0, 1e-3, -1.0, 0.0])).item()
    0.5
    """
    off = np.abs(weight) <= DEAD * np.sqrt(_mean(np.square(weight)))[..., None]
    return np.where(np.isnan(weight).all(-1), np.nan, _mean(off))


def _mean(values: npt.NDArray[Any]) -> Array:
    """Return the mean over the last axis, in less time than numpy's own."""
    mean: Array = np.add.reduce(values, axis=-1, dtype=np.float64) / values.shape[-1]
    return mean


def _median(values: Array) -> Array:
    """Return the median over the last axis of what is not NaN."""
    ordered = np.sort(values)  # NaN last
    known = ordered.shape[-1]
    if not np.isnan(ordered[..., -1]).any():  # in a tenth of the time of numpy's own
        return 0.5 * (ordered[..., (known - 1) // 2] + ordered[..., known // 2])
    counts = np.count_nonzero(~np.isnan(ordered), axis=-1)
    middle = np.stack([np.maximum(counts - 1, 0) // 2, counts // 2], -1)
    median: Array = 0.5 * np.take_along_axis(ordered, middle, -1).sum(-1)
    return median
