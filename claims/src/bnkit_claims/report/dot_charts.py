"""Values with their intervals, a row for each thing that was measured."""

from collections import Counter
from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Any

import altair as alt

from bnkit.report.charts import Panel, Row, layer
from bnkit.report.scales import Scale
from bnkit_claims.core.charts import Dot, Dots, Rule
from bnkit_claims.report.axes_and_colours import Keys, across, colours, keys, scale_of

SHAPES = ("circle", "diamond", "square", "triangle-up", "triangle-down", "cross")
WIDTH = 20  # characters of a row's name in a line, which leave room for its dots on a phone
LINE = 12  # pixels for a line of a row's name
ROOM = 15  # pixels for a dot with its name
BETWEEN = 14  # pixels more for a row
# Each dot has a place of its own in its row.
IN_ROW: dict[str, Any] = {"y": "row:N", "yOffset": "place:O", "color": "key:N"}
# Where the name of a dot is: beside an end of its interval, or over its value.
NAME_AT: dict[str, tuple[str, dict[str, Any]]] = {
    "right": ("high", {"align": "left", "dx": 8}),
    "left": ("low", {"align": "right", "dx": -8}),
    "over, from it": ("value", {"align": "left", "dy": -9}),
    "over, up to it": ("value", {"align": "right", "dy": -9}),
}


def panels_of_dots(record: Dots, name: str) -> tuple[Panel, ...]:
    """Return the one panel: in each row its dots under each other, each with its name beside it."""
    ruled = [] if record.rule is None else [record.rule.value]
    values = (v for dot in record.dots for v in (dot.value, dot.low, dot.high))
    scale = scale_of(record.x, [*values, *ruled])
    named, rows = keys(record.dots), Rows(record.dots)
    marks = list(_marks(record, named, rows))
    panel = Panel(
        name=f"{name}-0",
        description=_in_words(record),
        layers=[
            _intervals(marks, across(scale, "low", record.x.label, grid=True), rows),
            *([] if record.rule is None else _rule(record.rule)),
            *_points(marks, named),
            *_names(marks, scale),
        ],
        height=rows.height,
        colour=colours(named),
    )
    return (panel,)


class Rows:
    """The rows that dots lie in.

    A name begins at the middle of its row and goes down, as Vega draws it: so all are of as many
    lines, the shorter ones between empty lines, and `offset` pixels higher.
    """

    def __init__(self, dots: Sequence[Dot]) -> None:
        lines = {dot.row: wrap(dot.row, WIDTH) for dot in dots}
        self.lines = max(map(len, lines.values()), default=1)
        self.names = {row: "\n".join(self._padded(text)) for row, text in lines.items()}
        self.dots = max(Counter(dot.row for dot in dots).values(), default=1)
        self.offset = -LINE * (self.lines - 1) / 2

    def _padded(self, text: list[str]) -> list[str]:
        above = (self.lines - len(text)) // 2
        return [*[" "] * above, *text, *[" "] * (self.lines - len(text) - above)]

    @property
    def height(self) -> int:
        """The height of all rows, in pixels.

        >>> Rows([Dot("relu", "plain", 1.0), Dot("relu", "batch norm", 2.0)]).height
        44
        """
        row = max(ROOM * self.dots + BETWEEN, LINE * (self.lines + 1))
        return max(row * len(self.names), 2 * ROOM + BETWEEN)


def places(dots: Sequence[Dot]) -> list[int]:
    """Return for each dot which of its row it is.

    >>> places([Dot("relu", "plain", 1.0), Dot("tanh", "plain", 3.0), Dot("relu", "BN", 2.0)])
    [0, 0, 1]
    """
    return [sum(dot.row == before.row for before in dots[:n]) for n, dot in enumerate(dots)]


def _marks(record: Dots, named: Keys, rows: Rows) -> Iterable[Row]:
    for dot, place in zip(record.dots, places(record.dots), strict=True):
        if dot.value is not None:
            yield {
                "row": rows.names[dot.row],
                "place": place,
                "name": dot.name,
                "alone": dot.name == dot.row,  # its name is that of the row
                "key": named[dot.name, dot.side],
                "value": dot.value,
                "low": dot.value if dot.low is None else dot.low,
                "high": dot.value if dot.high is None else dot.high,
                "reading": f"{dot.row}, {dot.name}: {_reading(dot)}",
            }


def _reading(dot: Dot) -> str:
    interval = "" if dot.low is None or dot.high is None else f" ({dot.low:.3g} to {dot.high:.3g})"
    return f"{dot.value:.3g}{interval}"


def _intervals(marks: list[Row], x: alt.X, rows: Rows) -> alt.Chart:
    """The intervals; they bring the axes, which the layers after them share."""
    named = alt.Axis(
        title=None,
        grid=True,
        tickBand="extent",
        labelLimit=150,
        labelExpr="split(datum.label, '\\n')",  # in lines
        labelOffset=rows.offset,
    )
    y = alt.Y("row:N", axis=named, scale=alt.Scale(domain=list(rows.names.values())))
    look = {"strokeWidth": 2, "opacity": 0.7}
    return layer("rule", marks, look, x=x, x2="high", **IN_ROW | {"y": y})


def _points(marks: list[Row], named: Keys) -> Iterable[Any]:
    """The values: a layer for each name, with a shape of its own, on each side."""
    names = list(dict.fromkeys(name for name, _ in named))
    for (name, _), key in named.items():
        shape = SHAPES[names.index(name) % len(SHAPES)]
        look = {"shape": shape, "filled": key != "plain"}
        look |= {"size": 65, "opacity": 1, "strokeWidth": 2}
        points: Any = layer("point", marks, look, x="value:Q", description="reading:N", **IN_ROW)
        yield points.transform_filter((alt.datum.name == name) & (alt.datum.key == key))


def _names(marks: list[Row], scale: Scale) -> Iterable[alt.Chart]:
    """Each dot's name beside its interval, or over it where that leaves no room on either side."""
    placed: dict[str, list[Row]] = {where: [] for where in NAME_AT}
    for mark in marks:
        where = _place(*(scale.height(mark[each]) for each in ("low", "value", "high")))
        if not mark["alone"]:
            placed[where].append({**mark, "end": mark[NAME_AT[where][0]]})
    for where, some in placed.items():
        look = {**NAME_AT[where][1], "fontSize": 10.5, "fontWeight": "bold"}
        yield layer("text", some, look, x="end:Q", text="name:N", **IN_ROW)


def _place(low: float, value: float, high: float) -> str:
    """Return where the name of a dot has room, of its places from 0 (left) to 1 (right)."""
    if high < 2 / 3:
        return "right"
    if low > 1 / 4:
        return "left"
    return "over, from it" if value < 1 / 2 else "over, up to it"


def _rule(rule: Rule) -> Iterable[alt.Chart]:
    """A thin line down, with its label over its upper end."""
    rows = [{"value": rule.value, "text": rule.label}]
    yield layer("rule", rows, {"strokeDash": [2, 2], "opacity": 0.8}, x="value:Q")
    look = {"align": "left", "dx": 3, "fontSize": 10, "baseline": "bottom"}
    yield layer("text", rows, look, x="value:Q", y=alt.value(-3), text="text:N")


def _in_words(record: Dots) -> str:
    found = [
        f"{dot.row}, {dot.name}: {'nothing' if dot.value is None else _reading(dot)}"
        for dot in record.dots
    ]
    return f"{record.title}: {'; '.join(found)}."
