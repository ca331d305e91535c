"""Frames: what the vertical axis of all panels of one figure shows, and from where to where."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from bnkit.report.curves import Curves

LINE = 0.1  # the height of a label as a share of the axis
DECADES = 6  # below this many powers of ten under its top, a loss is as good as zero


@dataclass(frozen=True)
class Frame:
    """A vertical axis: its label, its ends, its ticks, and how a value on it is written.

    `text` is a format for both Python and the drawing library, `unit` stands behind it.
    """

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    text: str
    unit: str = ""
    logarithmic: bool = False
    target: float | None = None

    def written(self, value: float) -> str:
        """Return the value as it is written, with its unit."""
        return f"{value:{self.text}}{self.unit}"

    def inside(self, value: float) -> float:
        """Return the value, moved to the nearest end where it lies outside."""
        return min(max(value, self.low), self.high)

    def height(self, value: float) -> float:
        """Return where on the axis the value lies, from 0 to 1."""
        if self.logarithmic:
            return math.log(self.inside(value) / self.low) / math.log(self.high / self.low)
        return (self.inside(value) - self.low) / (self.high - self.low)

    def value(self, height: float) -> float:
        """Return the value that lies there; the inverse of `height`."""
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** height)
        return self.low + height * (self.high - self.low)

    def apart(self, values: Sequence[float]) -> list[float]:
        """Return the values, moved apart so far that labels beside them do not overlap.

        >>> Frame("accuracy", 0, 100, (), ".0f").apart([98, 97])
        [100.0, 90.0]
        """
        order = sorted(range(len(values)), key=values.__getitem__)
        heights = _apart([self.height(values[place]) for place in order])
        moved = dict(zip(order, heights, strict=True))
        return [self.value(moved[place]) for place in range(len(values))]


def _apart(rising: Sequence[float]) -> list[float]:
    """Return rising heights at least a line apart, inside 0 to 1, each group about its middle."""
    groups: list[tuple[float, int]] = []  # the lowest height of each group, how many are in it
    for height in rising:
        low, count = height, 1
        while groups and low < groups[-1][0] + groups[-1][1] * LINE:
            below, others = groups.pop()
            middle = (
                others * (below + (others - 1) * LINE / 2) + count * (low + (count - 1) * LINE / 2)
            ) / (others + count)
            count += others
            low = middle - (count - 1) * LINE / 2
        low = max(min(low, 1 - (count - 1) * LINE), 0)
        groups.append((low, count))
    return [low + place * LINE for low, count in groups for place in range(count)]


def accuracy_frame(curves: Iterable[Curves], target: float) -> Frame:
    """Return the frame of accuracies in percent: from 0 to 100, or to the next ten below 50."""
    highest = max([target, *(spread.highest for each in curves for spread in each.everything)])
    high = 100 if highest > 50 else max(10, 10 * math.ceil(highest / 10))
    ticks = tuple(float(tick) for tick in range(0, high + 1, 25 if high == 100 else 10))
    return Frame("held-out accuracy (%)", 0, high, ticks, ".1f", "%", target=target)


def loss_frame(curves: Iterable[Curves]) -> Frame:
    """Return the frame of losses: logarithmic, six decades at most, and no explosion at its top.

    The top is at most 10 times the median of the first losses: the loss of a run that diverges
    passes all bounds, and would press everything else flat.
    """
    curves = list(curves)
    first = [side[0].median for each in curves for side in each.spreads.values() if side]
    values = [v for each in curves for s in each.everything for v in (s.lowest, s.highest)]
    positive = [value for value in values if value > 0] or [1.0]
    high = 1.1 * min(max(positive), 10 * (median(first) if first else math.inf) or math.inf)
    low = max(min(positive), high * 10**-DECADES) / 1.1
    ticks = powers(low, high, most=4)
    return Frame("training loss (log scale)", low, high, ticks, ".2g", logarithmic=True)


def powers(low: float, high: float, *, most: int) -> tuple[float, ...]:
    """Return round values between `low` and `high`, both positive, for a logarithmic axis.

    Powers of ten, thinned to `most`, or 1, 2 and 5 times those where there are fewer than two.

    >>> powers(0.05, 200, most=5), powers(30, 700, most=5)
    ((0.1, 1.0, 10.0, 100.0), (50.0, 100.0, 200.0, 500.0))
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [float(f"1e{e}") for e in exponents if low <= 10.0**e <= high]
    if len(inside) < 3:
        inside = [float(f"{n}e{e}") for e in exponents for n in (1, 2, 5)]
    inside = [value for value in inside if low <= value <= high]
    return tuple(inside[:: math.ceil(len(inside) / most) or 1])
