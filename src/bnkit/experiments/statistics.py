"""What a handful of seeds can and cannot show: means, paired ratios, rates, and their tests."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from bnkit.moments import Moments

LEAST_SEEDS = 3  # under these there are no intervals
MOST_SEEDS = 1000  # to run more of them is no advice


@dataclass(frozen=True)
class Mean:
    """The mean of one value a seed, the standard `deviation` of such a value, and their `count`.

    They are numbers, or arrays with an item for each sweep. Tests and intervals are Student's,
    which take the seeds to be independent and their values to be roughly normal.
    """

    mean: Any
    deviation: Any
    count: int

    @classmethod
    def of(cls, values: ArrayLike, *, rounding: ArrayLike = 0.0) -> "Mean":
        """Return the mean of `values`, of shape (seeds,) or (seeds, sweeps).

        `rounding` is the variance of the rounding of a value. The deviation is never less: values
        that are equal because they were measured coarsely do not prove that they never differ.

        >>> Mean.of([1.0, 2.0, 3.0])
        Mean(mean=2.0, deviation=1.0, count=3)
        >>> Mean.of([2.0, 2.0, 2.0], rounding=0.25).deviation
        0.5
        """
        given = torch.as_tensor(np.asarray(values, dtype=np.float64))
        # Each sweep is a channel, (seeds, sweeps): moments are those of channels.
        moments = Moments.of(given.reshape(len(given), -1))
        variance = moments.unbiased_variance if len(given) > 1 else torch.zeros_like(moments.mean)
        mean, deviation = moments.mean.numpy(), np.sqrt(np.maximum(variance.numpy(), rounding))
        if given.dim() == 1:
            mean, deviation = mean.item(), deviation.item()
        return cls(mean, deviation, len(given))

    def interval(self, confidence: float = 0.95) -> tuple[Any, Any]:
        """Return the bounds of the mean; infinite under three seeds.

        >>> [round(bound, 3) for bound in Mean(2.0, 1.0, 3).interval()]
        [-0.484, 4.484]
        """
        reach = self._reach((1 - confidence) / 2, self.count)
        return self.mean - reach, self.mean + reach

    def p_different(self) -> Any:
        """Return the two-sided p-value of a mean of 0; 1 under three seeds.

        >>> round(Mean(2.0, 1.0, 3).p_different(), 3)
        0.074
        """
        return _unboxed(np.minimum(1, 2 * self._tail(abs(self.mean))))

    def p_within(self, margin: ArrayLike) -> Any:
        """Return the p-value of a mean of `margin` or more either way; 1 under three seeds.

        Of two one-sided tests (Schuirmann 1987) it is the larger p-value.

        >>> round(Mean(0.0, 1.0, 100).p_within(0.25), 3)
        0.007
        """
        return self._tail(np.asarray(margin) - abs(self.mean))

    def seeds_to_differ(self, level: float) -> int | None:
        """Return how many seeds with this mean and deviation would show that it is not 0.

        None where 1,000 would not, or where the spread is unknown, under two seeds.

        >>> Mean(2.0, 1.0, 3).seeds_to_differ(0.05)
        4
        """
        return self._first(lambda counts: abs(self.mean) > self._reach(level / 2, counts))

    def seeds_to_lie_within(self, margin: float, level: float) -> int | None:
        """Return how many would show that it lies within the margin; None as above.

        >>> Mean(0.0, 1.0, 3).seeds_to_lie_within(0.25, 0.05)
        46
        """
        return self._first(lambda counts: abs(self.mean) + self._reach(level, counts) < margin)

    def _tail(self, distance: Any) -> Any:
        """Return how probable it is that the mean is off by so much or more in one direction."""
        if self.count < LEAST_SEEDS:
            return _unboxed(np.ones_like(self.mean, dtype=np.float64))
        from scipy.stats import t  # noqa: PLC0415  half a second, needed only here

        distance, error = np.asarray(distance), self.deviation / math.sqrt(self.count)
        with np.errstate(divide="ignore", invalid="ignore"):
            # Without any error a distance of 0 proves nothing, and any other one all.
            errors = np.where(distance == 0, 0.0, distance / error)
        return _unboxed(t.sf(errors, self.count - 1))

    def _reach(self, tail: float, count: Any) -> Any:
        """Return how far the interval of `count` seeds reaches, with this probability beyond it.

        `count` may be an array of counts.
        """
        from scipy.stats import t  # noqa: PLC0415  as above

        enough = np.maximum(count, LEAST_SEEDS)
        reach = t.isf(tail, enough - 1) * self.deviation / np.sqrt(enough)
        return _unboxed(np.where(count < enough, np.inf, reach))

    def _first(self, show: Callable[[Any], Any]) -> int | None:
        counts = np.arange(LEAST_SEEDS, MOST_SEEDS + 1)
        shown = show(counts)
        return int(counts[shown.argmax()]) if self.count > 1 and shown.any() else None


def rounding_variance(step: ArrayLike) -> Any:
    """Return the variance of the rounding of a value that is known to one `step` (Sheppard 1898).

    >>> rounding_variance(6.0)
    3.0
    """
    return _unboxed(np.square(step) / 12)


def smallest_step(values: Iterable[float]) -> float:
    """Return the least difference between two values that differ, 0 where none do.

    A coarse metric, such as the accuracy on ten examples, is known to such a step only.

    >>> round(smallest_step([0.9, 0.7, 0.9, 0.8]), 12)
    0.1
    """
    known = np.unique(np.asarray([*values], dtype=np.float64))
    steps = np.diff(known)
    steps = steps[steps > 1e-9 * np.abs(known).max(initial=0)]  # more than sums of floats differ
    return float(steps.min()) if len(steps) else 0.0


def holm(p_values: ArrayLike, level: float) -> Any:
    """Return the level at which each test along the last axis is made (Holm 1979).

    A test shows something where its p-value is at most this; that one of them shows something
    false then has a probability of at most `level`.

    >>> holm([0.03, 0.01, 0.5], 0.06).round(3).tolist()
    [0.03, 0.02, 0.06]
    """
    given = np.asarray(p_values)
    count = given.shape[-1]
    order = given.argsort(axis=-1, kind="stable")
    levels = level / (count - np.arange(count))
    fails = np.take_along_axis(given, order, axis=-1) > levels
    # From the first that fails on, all are made at its level, at which they fail too.
    last = np.where(fails.any(-1), fails.argmax(-1), count - 1)[..., None]
    return levels[np.minimum(order.argsort(axis=-1, kind="stable"), last)]


@dataclass(frozen=True)
class PairedRatio:
    """How many times as many steps the plain network took as its twin, over paired runs.

    `ratio` is the geometric mean over the `both` pairs in which both sides reached the target
    (None where there are none); `low` and `high` bound its 95% t-interval on the logarithm, None
    under three pairs. The other pairs are counted, never dropped.
    """

    ratio: float | None
    low: float | None
    high: float | None
    both: int
    only_batch_norm: int
    only_plain: int
    neither: int

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return self.both + self.only_plain + self.only_batch_norm + self.neither

    @property
    def excludes_one(self) -> bool:
        """Whether the interval exists and lies wholly on one side of 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high

    def __str__(self) -> str:
        if self.ratio is None:
            return "no pair in which both reach the target"
        interval = "" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{self.ratio:.2f}{interval}"


def paired_ratio(pairs: Iterable[tuple[float | None, float | None]]) -> PairedRatio:
    """Return the geometric mean of plain ÷ batch norm over `pairs` of (plain, batch norm).

    None in a pair means that this side never reached the target.

    >>> str(paired_ratio([(400, 100), (600, 200), (900, 200), (None, 300)]))
    '3.78 (2.25 to 6.35)'
    """
    pairs = list(pairs)
    logarithms = [math.log(p / b) for p, b in pairs if p is not None and b is not None]
    low, high = _interval(logarithms)
    return PairedRatio(
        ratio=math.exp(math.fsum(logarithms) / len(logarithms)) if logarithms else None,
        low=None if low is None else math.exp(low),
        high=None if high is None else math.exp(high),
        both=len(logarithms),
        only_batch_norm=sum(p is None and b is not None for p, b in pairs),
        only_plain=sum(p is not None and b is None for p, b in pairs),
        neither=sum(p is None and b is None for p, b in pairs),
    )


@dataclass(frozen=True)
class PairedDifference:
    """By how much one side exceeds the other over `pairs` paired runs.

    `low` and `high` bound the 95% t-interval of the mean `difference`, None under three pairs.
    """

    difference: float | None
    low: float | None
    high: float | None
    pairs: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval exists and lies wholly on one side of 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def times(self, factor: float) -> "PairedDifference":
        """Return it in another unit, as 100 for percentage points, or turned round, by -1.

        >>> PairedDifference(0.25, 0.125, 0.5, pairs=3).times(-100)
        PairedDifference(difference=-25.0, low=-50.0, high=-12.5, pairs=3)
        """
        value, *ends = (
            None if number is None else factor * number
            for number in (self.difference, self.low, self.high)
        )
        low, high = ends if factor > 0 else reversed(ends)
        return PairedDifference(value, low, high, self.pairs)

    def __format__(self, form: str) -> str:
        """Return the difference and its interval, where there is one, each in this format.

        >>> f"{PairedDifference(0.25, 0.125, 0.5, pairs=3):+.1%}"
        '+25.0% (+12.5% to +50.0%)'
        """
        if self.difference is None:
            return "unknown"
        interval = "" if self.low is None else f" ({self.low:{form}} to {self.high:{form}})"
        return f"{self.difference:{form}}{interval}"


def paired_difference(pairs: Iterable[tuple[float, float]]) -> PairedDifference:
    """Return the mean of batch norm − plain over `pairs` of (plain, batch norm).

    >>> paired_difference([(0.5, 0.75), (0.5, 0.75), (0.25, 0.75)]).low.__round__(3)
    -0.025
    """
    differences = [batch_norm - plain for plain, batch_norm in pairs]
    low, high = _interval(differences)
    mean = math.fsum(differences) / len(differences) if differences else None
    return PairedDifference(mean, low, high, len(differences))


def sign_test(wins: ArrayLike, losses: ArrayLike) -> Any:
    """Return the two-sided p-value of `wins` against `losses`, were both equally likely.

    Ties do not count (the exact form of McNemar's test, 1947). Both may be arrays.

    >>> sign_test(6, 0)
    0.03125
    """
    from scipy.stats import binom  # noqa: PLC0415  half a second, needed only here

    wins, losses = np.asarray(wins), np.asarray(losses)
    return _unboxed(np.minimum(1, 2 * binom.cdf(np.minimum(wins, losses), wins + losses, 0.5)))


def seeds_to_win(wins: int, losses: int, seeds: int, level: float) -> int | None:
    """Return how many seeds with these shares of wins and losses the sign test would need.

    Parts of a seed count against it. None where 1,000 would not be enough.

    >>> seeds_to_win(2, 0, 2, 0.05)
    6
    """
    counts = np.arange(LEAST_SEEDS, MOST_SEEDS + 1)
    most, least = max(wins, losses), min(wins, losses)
    # Of the least, rounded up: 7 to 1 in eight seeds is not 6 to 0 in seven.
    shown = sign_test(most * counts // seeds, -(-least * counts // seeds)) <= level
    return int(counts[shown.argmax()]) if shown.any() else None


def _unboxed(value: Any) -> Any:
    """Return a number as Python's own, and an array as it is."""
    return value.item() if np.ndim(value) == 0 else value


def _interval(values: list[float]) -> tuple[float, float] | tuple[None, None]:
    return Mean.of(values).interval() if len(values) >= LEAST_SEEDS else (None, None)


@dataclass(frozen=True)
class SuccessRate:
    """How many of several runs succeeded, with Wilson's 95% interval for the rate."""

    successes: int
    runs: int

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the rate by Wilson's method (1927); (0, 1) without runs.

        >>> [round(bound, 2) for bound in SuccessRate(3, 3).interval]
        [0.44, 1.0]
        """
        if not self.runs:
            return 0.0, 1.0
        from scipy.stats import binomtest  # noqa: PLC0415  as above

        found = binomtest(self.successes, self.runs).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        return f"{self.successes}/{self.runs}"
