"""Scales: from where to where an axis goes, and round values on it that do not crowd each other."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import altair as alt

from bnkit.report.panels import at

CLEAR = 0.16  # of the axis between two labels


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`: logarithmic, or so beyond `linear` on both sides of 0.

    `linear` is the size up to which it is nearly linear, None for a logarithmic axis.
    """

    low: float
    high: float
    linear: float | None

    def height(self, value: float) -> float:
        """Return where on the axis the value lies, from 0 to 1.

        >>> round(Scale(0.01, 100, None).height(1), 6), Scale(-1, 1, 0.5).height(0)
        (0.5, 0.5)
        """
        low, high, found = map(self._bent, (self.low, self.high, value))
        return (found - low) / (high - low)

    def _bent(self, value: float) -> float:
        if self.linear is None:
            return math.log(value)
        return math.copysign(math.log1p(abs(value) / self.linear), value)

    @property
    def ticks(self) -> list[float]:
        """Round values in order of size, the roundest first where there is room for some only.

        >>> Scale(0, 12, 1).ticks, Scale(0.3, 3, None).ticks
        ([0.0, 1.0, 5.0, 10.0], [0.5, 1.0, 2.0])
        """
        chosen: list[float] = []
        for value in self._candidates():
            inside = self.low <= value <= self.high
            if inside and all(abs(self.height(value) - self.height(c)) >= CLEAR for c in chosen):
                chosen.append(value)
        return sorted(chosen)

    def _candidates(self) -> Iterable[float]:
        unit = self.linear or 1.0
        yield 0.0 if self.linear else unit
        exponents = sorted(range(-9, 10), key=abs)
        for digit, exponent, sign in product(
            (1, 2, 5), exponents, (1, -1) if self.linear else (1,)
        ):
            yield sign * float(f"{digit}e{exponent}") * unit

    def upright(self, field: str) -> alt.Y:
        """Return the vertical axis for this field of the data."""
        bent: dict[str, Any] = (
            {"type": "log"} if self.linear is None else {"type": "symlog", "constant": self.linear}
        )
        return alt.Y(
            f"{field}:Q",
            scale=alt.Scale(domain=[self.low, self.high], nice=False, clamp=True, **bent),
            axis=alt.Axis(
                **at(self.ticks), labelExpr="format(datum.value, '~g')", grid=True, title=None
            ),
        )


def around_zero(values: Sequence[float], linear: float, *, least: float) -> Scale:
    """Return a scale that holds 0, `least` and all values, nearly linear up to `linear`."""
    low, high = min([0.0, *values]), max([least, *values])
    return Scale(1.05 * low, 1.05 * high, linear)


def around_one(values: Sequence[float]) -> Scale:
    """Return a logarithmic scale that holds ½, 1, 2 and all values, which are positive."""
    return Scale(min([0.5, *values]) / 1.1, max([2.0, *values]) * 1.1, None)
