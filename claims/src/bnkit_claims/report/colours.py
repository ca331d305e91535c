"""Which line or dot of a claim's chart has which colour, and what else tells it apart."""

from collections.abc import Iterable
from typing import Any

import altair as alt

from bnkit.experiments.results import SIDES, Side
from bnkit.report.panels import STROKE
from bnkit_claims.core.figures import Dot, Line

KEY = alt.Color("key:N")  # of the layers whose rows have a colour
Keys = dict[tuple[str, Side | None], str]
OTHER = "other"  # names of colours that belong to no side: "other 1", "other 2", …
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [1, 3], [12, 3])


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
