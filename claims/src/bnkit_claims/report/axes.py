"""Axes of the charts of claims: their ends, their ticks, and numbers as they are written."""

import math
from collections.abc import Iterable
from textwrap import wrap
from typing import Any

import altair as alt

from bnkit.report.frames import Frame, powers
from bnkit.report.panels import at
from bnkit_claims.core.figures import Axis


def frame_of(axis: Axis, values: Iterable[float | None]) -> Frame:
    """Return the frame that shows all finite values, with a little room around them.

    On a logarithmic axis only positive values have a place; the others are drawn at its lower end.
    """
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if axis.logarithmic:
        positive = [v for v in finite if v > 0] or [1.0]
        low, high = min(positive), max(positive)
        room = max((high / low) ** 0.04, 1.1)
        low, high = low / room, high * room
        return Frame(axis.label, low, high, powers(low, high, most=5), ".3g", logarithmic=True)
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    room = 0.04 * (high - low) or 0.5
    return Frame(axis.label, low - room, high + room, (), ".3g")


def scale_of(frame: Frame) -> alt.Scale:
    """Return the scale from the frame's low end to its high end."""
    return alt.Scale(
        domain=[frame.low, frame.high],
        type="log" if frame.logarithmic else "linear",
        clamp=True,
        nice=False,
    )


def ticks_of(frame: Frame, *, title: str | None, grid: bool) -> alt.Axis:
    """Return the axis with few ticks, their labels short, its title in lines of a phone's width."""
    where: dict[str, Any] = at(frame.ticks) if frame.ticks else {"tickCount": 4}
    written = "format(datum.value, '~g')"
    if frame.logarithmic:  # 0.001 to 10,000 in digits, beyond as powers
        written = (
            "datum.value >= 1e5 || datum.value < 1e-4 ? format(datum.value, '.0e') : "
            "format(datum.value, ',~g')"
        )
    lines = None if title is None else wrap(title, 44)
    return alt.Axis(**where, labelExpr=written, title=lines, grid=grid, labelFlush=True)


def titled(panel: str, label: str) -> alt.Title:
    """Return the title of a panel over the label of its vertical axis, or that label alone."""
    lines = wrap(label, 50)
    return alt.Title(panel, subtitle=lines) if panel else alt.Title(lines, fontWeight="normal")
