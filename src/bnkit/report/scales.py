"""Scales: from where to where an axis goes, its ticks, and labels on it that do not overlap."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import altair as alt

LINE = 0.1  # the height of a label as a share of the axis
CLEAR = 0.16  # of the axis between two ticks that are chosen by their roundness
SHORT = "format(datum.value, '~g')"  # as a format it would be rounded to fit the steps


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, with its ticks; without ticks Vega chooses about four.

    A "symlog" scale is nearly linear up to `constant` on both sides of 0, beyond it logarithmic.
    """

    low: float
    high: float
    ticks: tuple[float, ...] = ()
    type: Literal["linear", "log", "symlog"] = "linear"
    constant: float = 1.0

    def inside(self, value: float) -> float:
        """Return the value, moved to the nearest end where it lies outside."""
        return min(max(value, self.low), self.high)

    def height(self, value: float) -> float:
        """Return where on the axis the value lies, from 0 to 1.

        >>> round(Scale(0.01, 100, type="log").height(1), 6), Scale(-1, 1, type="symlog").height(0)
        (0.5, 0.5)
        """
        low, high, found = map(self._bent, (self.low, self.high, self.inside(value)))
        return (found - low) / (high - low)

    def value(self, height: float) -> float:
        """Return the value that lies there; the inverse of `height`."""
        low, high = self._bent(self.low), self._bent(self.high)
        return self._unbent(low + height * (high - low))

    def _bent(self, value: float) -> float:
        if self.type == "linear":
            return value
        if self.type == "log":
            return math.log(value)
        # d3's scaleSymlog, which Vega draws
        return math.copysign(math.log1p(abs(value) / self.constant), value)

    def _unbent(self, place: float) -> float:
        if self.type == "linear":
            return place
        if self.type == "log":
            return math.exp(place)
        return math.copysign(math.expm1(abs(place)) * self.constant, place)

    def apart(self, values: Sequence[float]) -> list[float]:
        """Return the values, moved apart so far that labels at them do not overlap.

        >>> Scale(0, 100).apart([98, 97])
        [100.0, 90.0]
        """
        order = sorted(range(len(values)), key=values.__getitem__)
        heights = _apart([self.height(values[place]) for place in order])
        moved = dict(zip(order, heights, strict=True))
        return [self.value(moved[place]) for place in range(len(values))]

    def x(self, field: str, **axis: Any) -> alt.X:
        """Return the horizontal axis for this field of the data, with options of `alt.Axis`."""
        return alt.X(f"{field}:Q", scale=self._drawn, axis=self._axis(**axis))

    def y(self, field: str, **axis: Any) -> alt.Y:
        """Return the vertical axis, without a title and with a grid unless the options differ."""
        options = {"title": None, "grid": True, "labelExpr": SHORT} | axis
        return alt.Y(f"{field}:Q", scale=self._drawn, axis=self._axis(**options))

    @property
    def _drawn(self) -> alt.Scale:
        bend: dict[str, Any] = {"constant": self.constant} if self.type == "symlog" else {}
        domain = [self.low, self.high]
        return alt.Scale(domain=domain, type=self.type, nice=False, clamp=True, **bend)

    def _axis(self, **options: Any) -> alt.Axis:
        # With the ticks alone and without their number, Vega leaves some of them out.
        where: dict[str, Any] = {"values": list(self.ticks), "tickCount": len(self.ticks) or 4}
        if not self.ticks:
            del where["values"]
        return alt.Axis(**where, **options)


def _apart(rising: Sequence[float]) -> list[float]:
    """Return rising heights at least a line apart, inside 0 to 1, each group about its middle."""
    groups: list[tuple[float, int]] = []  # the lowest height of each group, how many are in it
    for height in rising:
        low, count = height, 1
        # As in isotonic regression: groups that overlap are pooled about their common middle.
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


def around_zero(values: Sequence[float], linear: float, *, least: float) -> Scale:
    """Return a scale that holds 0, `least` and all values, nearly linear up to `linear`.

    >>> around_zero([0, 11], 1.0, least=1.0).ticks
    (0.0, 1.0, 2.0, 5.0, 10.0)
    """
    low, high = min([0.0, *values]), max([least, *values])
    return _with_round_ticks(Scale(1.05 * low, 1.05 * high, (), "symlog", linear))


def around_one(values: Sequence[float]) -> Scale:
    """Return a logarithmic scale that holds ½, 1, 2 and all values, which are positive.

    >>> around_one([1.5]).ticks
    (0.5, 1.0, 2.0)
    """
    return _with_round_ticks(Scale(min([0.5, *values]) / 1.1, max([2.0, *values]) * 1.1, (), "log"))


def _with_round_ticks(scale: Scale) -> Scale:
    """Return the scale with round ticks, the roundest first where there is room for some only."""
    chosen: list[float] = []
    for value in _round_values(scale):
        inside = scale.low <= value <= scale.high
        if inside and all(abs(scale.height(value) - scale.height(c)) >= CLEAR for c in chosen):
            chosen.append(value)
    return replace(scale, ticks=tuple(sorted(chosen)))


def _round_values(scale: Scale) -> Iterable[float]:
    signed = scale.type == "symlog"
    yield 0.0 if signed else 1.0
    exponents = sorted(range(-9, 10), key=abs)
    for digit, exponent, sign in product((1, 2, 5), exponents, (1, -1) if signed else (1,)):
        yield sign * float(f"{digit}e{exponent}") * scale.constant


def powers(low: float, high: float, *, most: int) -> tuple[float, ...]:
    """Return round values between `low` and `high`, both positive, for a logarithmic axis.

    Powers of ten, thinned to `most`, or 1, 2 and 5 times those where there are fewer than three.

    >>> powers(0.05, 200, most=5), powers(30, 700, most=5)
    ((0.1, 1.0, 10.0, 100.0), (50.0, 100.0, 200.0, 500.0))
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [float(f"1e{e}") for e in exponents if low <= 10.0**e <= high]
    if len(inside) < 3:
        inside = [float(f"{n}e{e}") for e in exponents for n in (1, 2, 5)]
    inside = [value for value in inside if low <= value <= high]
    return tuple(inside[:: math.ceil(len(inside) / most) or 1])
