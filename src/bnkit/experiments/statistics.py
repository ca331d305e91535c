"""What a handful of seeds can and cannot show: paired ratios and success rates with intervals."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from bnkit.moments import Moments


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
    low, high = _t_interval(logarithms) if len(logarithms) > 2 else (None, None)
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
    low, high = _t_interval(differences) if len(differences) > 2 else (None, None)
    mean = math.fsum(differences) / len(differences) if differences else None
    return PairedDifference(mean, low, high, len(differences))


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of `wins` against `losses`, were both equally likely.

    Ties do not count (the exact form of McNemar's test, 1947).

    >>> sign_test(6, 0)
    0.03125
    """
    from scipy.stats import binomtest  # noqa: PLC0415  half a second, needed only here

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def _t_interval(values: list[float]) -> tuple[float, float]:
    from scipy.stats import t  # noqa: PLC0415  as above

    # Not scipy's ttest_1samp, which has no interval for values that are all equal.
    # The values as a column (n, 1): moments are those of features.
    moments = Moments.of(torch.tensor(values, dtype=torch.float64)[:, None])
    mean: float = moments.mean.item()
    error = math.sqrt(moments.unbiased_variance.item() / moments.count)
    reach = float(t.ppf(0.975, moments.count - 1)) * error
    return (mean - reach, mean + reach)


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
