"""What is said of a layer: its channels' numbers drawn together, in numpy."""

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from bnkit.diagnosis.rules.parameters import DEAD

Array = npt.NDArray[np.float64]

# Between the 15th and the 85th percentile of a normal distribution, in standard deviations.
_WIDTH = 2.0729


def typical(percentiles: Array) -> Array:
    """Return the percentiles (2, 3) of a typical channel of `percentiles` (2, C, 3): the median."""
    return _median(percentiles, axis=1)


def drift(now: Array, before: Array | None) -> Array:
    """Return how far the percentiles (2, C, 3) of a typical channel moved, in deviations, (2,).

    The root mean square over the three, in standard deviations of a normal distribution with the
    percentiles from before; of channels that vary, the median.

    >>> before = np.tile([-1.0, 0.0, 1.0], (2, 4, 1))
    >>> drift(before + 1, before).round(4)
    array([1.0365, 1.0365])
    """
    if before is None or before.shape != now.shape:
        return np.full(2, math.nan)
    deviations = (before[..., 2] - before[..., 0]) / _WIDTH
    deviations[~(deviations > 0)] = math.nan
    return _median(np.sqrt(np.square(now - before).mean(-1)) / deviations, axis=1)


def lag(channels: dict[str, Any], eps: float, momentum: float) -> tuple[float, float]:
    """Return how far the running statistics are off, and how far they are by chance.

    With batch mean μ and variance v, running m and r, eps in both variances, the lag is
    √(mean over channels of ((μ − m)² + (√v − √r)²) / r). By chance the squared error of μ is the
    unbiased variance of the rows' means over their number, that of √v half as much for normal
    values, and that of an average by momentum a adds a / (2 − a) of both.

    >>> batch, running = (np.array([4.0]), np.array([1.0])), (np.array([0.0]), np.array([1.0]))
    >>> channels = dict(zip(["mean", "variance", "running_mean", "running_var"], batch + running))
    >>> lag({**channels, "squared_error": np.array([0.5])}, eps=0.0, momentum=0.0)
    (4.0, 0.8660254037844386)
    """
    if channels["running_mean"] is None:
        return math.nan, math.nan
    running, batch = channels["running_var"] + eps, channels["variance"] + eps
    moved = np.square(channels["mean"] - channels["running_mean"])
    moved += np.square(np.sqrt(batch) - np.sqrt(running))
    off = math.sqrt(np.mean(moved / running))
    if channels["squared_error"] is None:
        return off, math.nan
    error = 1.5 * channels["squared_error"] * (1 + momentum / (2 - momentum))
    return off, math.sqrt(np.mean(error / running))


def never_positive(largest: Array) -> float:
    """Return the share of the channels whose largest output is not over 0.

    >>> never_positive(np.array([0.0, 2.0, math.nan, -1.0]))  # NaN is not known to be dead
    0.5
    """
    return float((largest <= 0).mean())


def switched_off(weight: Array | None) -> float:
    """Return the share of the channels that γ switches off, as the rule `dead-channels` counts.

    >>> switched_off(np.array([1.0, 1e-3, -1.0, 0.0]))
    0.5
    """
    if weight is None:
        return math.nan
    return float((np.abs(weight) <= DEAD * np.sqrt(np.square(weight).mean())).mean())


def _median(values: Array, *, axis: int) -> Array:
    """Return the median of what is no NaN."""
    ordered = np.sort(np.moveaxis(values, axis, -1))  # NaN last
    if not np.isnan(ordered[..., -1]).any():  # in a tenth of the time of numpy's own
        middle = ordered.shape[-1] // 2
        return 0.5 * (ordered[..., middle] + ordered[..., -1 - middle])
    with warnings.catch_warnings():  # where all are NaN, so is the median
        warnings.simplefilter("ignore", RuntimeWarning)
        median: Array = np.nanmedian(ordered, axis=-1)
    return median
