"""What the charts of claims share: scales with their labels, colours, and strokes."""

import math
from collections.abc import Iterable
from textwrap import wrap
from typing import Any

import altair as alt

from bnkit.experiments.results import SIDES, Side
from bnkit.report.palette import STROKE
from bnkit.report.scales import SHORT, Scale, powers
from bnkit_claims.core.charts import Axis, Dot, Line

Keys = dict[tuple[str, Side | None], str]
OTHER = "other"  # names of colours that belong to no side: "other 1", "other 2", …
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [1, 3], [12, 3])
# On a logarithmic axis 0.0001 to 10,000 in digits, beyond as powers.
POWERS = (
    "datum.value >= 1e5 || datum.value < 1e-4 ? format(datum.value, '.0e') : "
    "format(datum.value, ',~g')"
)


def scale_of(axis: Axis, values: Iterable[float | None]) -> Scale:
    """Return the scale that shows all finite values, with a little room around them.

    On a logarithmic axis only positive values have a place; the others are drawn at its lower end.
    """
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if axis.logarithmic:
        positive = [v for v in finite if v > 0] or [1.0]
        low, high = min(positive), max(positive)
        room = max((high / low) ** 0.04, 1.1)
        low, high = low / room, high * room
        return Scale(low, high, powers(low, high, most=5), "log")
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    room = 0.04 * (high - low) or 0.5
    return Scale(low - room, high + room)


def labels(scale: Scale) -> dict[str, Any]:
    """Return how the ticks of an axis are labelled: numbers as short as they are."""
    return {"labelExpr": POWERS if scale.type == "log" else SHORT, "labelFlush": True}


def across(scale: Scale, field: str, title: str, *, grid: bool = False) -> alt.X:
    """Return the horizontal axis, its title in lines of a phone's width."""
    return scale.x(field, title=wrap(title, 44), grid=grid, **labels(scale))


def titled(panel: str, label: str) -> alt.Title:
    """Return the title of a panel over the label of its vertical axis, or that label alone."""
    lines = wrap(label, 50)
    return alt.Title(panel, subtitle=lines) if panel else alt.Title(lines, fontWeight="normal")


def keys(drawn: Iterable[Line | Dot]) -> Keys:
    """Return the key of the colour for each name on each side: the side, or one of its own."""
    found: Keys = {}
    for each in drawn:
        if (each.name, each.side) not in found:
            others = sum(key.startswith(OTHER) for key in found.values())
            found[each.name, each.side] = each.side or f"{OTHER} {others + 1}"
    return found


def colours(named: Keys) -> alt.Color:
    """Return the colours of these keys, the sides first as in all charts, for all layers of one."""
    others = [key for key in named.values() if key.startswith(OTHER)]
    return alt.Color(scale=alt.Scale(domain=[*SIDES, *others]), legend=None)


def stroke(named: Keys, line: Line) -> dict[str, Any]:
    """Return width and dashes of a line, which tell it apart without colour.

    Of several lines of one side, each after the first has dashes of its own.
    """
    key = named[line.name, line.side]
    alike = [name for (name, _), each in named.items() if each == key]
    if key in STROKE and alike[0] == line.name:
        return STROKE[key]
    others = [name for (name, _), each in named.items() if each not in STROKE]
    number = alike.index(line.name) + 1 if key in STROKE else others.index(line.name)
    return {"strokeWidth": 2, "strokeDash": DASHES[number % len(DASHES)]}
