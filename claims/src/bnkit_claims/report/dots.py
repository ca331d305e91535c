"""Values with their intervals, a row for each thing that was measured."""

from collections.abc import Iterable
from typing import Any

import altair as alt

from bnkit.report.figure import Panel
from bnkit.report.frames import Frame
from bnkit_claims.core.figures import Dot, Dots, Rule
from bnkit_claims.report.axes import frame_of, scale_of, ticks_of
from bnkit_claims.report.colours import KEY, Keys, colours, keys
from bnkit_claims.report.rows import Rows, places

SHAPES = ("circle", "diamond", "square", "triangle-up", "triangle-down", "cross")
LABEL = "split(datum.label, '\\n')"  # in lines
PLACE = alt.YOffset("place:O")  # in the row
Marks = list[dict[str, Any]]


def panels_of_dots(figure: Dots, name: str) -> tuple[Panel, ...]:
    """Return the one panel: in each row its dots under each other, each with its name beside it."""
    ruled = [] if figure.rule is None else [figure.rule.value]
    values = (v for dot in figure.dots for v in (dot.value, dot.low, dot.high))
    frame = frame_of(figure.x, [*values, *ruled])
    named = keys(figure.dots)
    rows = Rows(figure.dots)
    marks = list(_marks(figure, named, rows))
    layers: list[Any] = [
        _intervals(marks, frame, rows),
        *([] if figure.rule is None else _rule(figure.rule)),
        *_points(figure, marks, named),
        *_names(marks, frame),
    ]
    drawing: Any = alt.layer(*layers).encode(color=colours(named)).properties(height=rows.height)
    return (Panel(name=f"{name}-0", words=_in_words(figure), drawing=drawing),)


def _marks(figure: Dots, named: Keys, rows: Rows) -> Iterable[dict[str, Any]]:
    for dot, place in zip(figure.dots, places(figure.dots), strict=True):
        if dot.value is not None:
            yield {
                "row": rows.names[dot.row],
                "place": place,
                "name": dot.name,
                "alone": dot.name == dot.row,  # its name stands at the row
                "key": named[dot.name, dot.side],
                "value": dot.value,
                "low": dot.value if dot.low is None else dot.low,
                "high": dot.value if dot.high is None else dot.high,
                "reading": _reading(dot),
            }


def _reading(dot: Dot) -> str:
    interval = "" if dot.low is None or dot.high is None else f" ({dot.low:.3g} to {dot.high:.3g})"
    return f"{dot.value:.3g}{interval}"


def _intervals(marks: Marks, frame: Frame, rows: Rows) -> alt.Chart:
    """The intervals; they bring the axes, which the layers after them share."""
    named = alt.Axis(
        title=None,
        grid=True,
        tickBand="extent",
        labelLimit=150,
        labelExpr=LABEL,
        labelOffset=rows.offset,
    )
    layer: alt.Chart = (
        alt.Chart(alt.InlineData(values=marks))
        .mark_rule(strokeWidth=2, opacity=0.7)
        .encode(
            x=alt.X(
                "low:Q",
                axis=ticks_of(frame, title=frame.label, grid=True),
                scale=scale_of(frame),
            ),
            x2=alt.X2("high"),
            y=alt.Y("row:N", axis=named, scale=alt.Scale(domain=list(rows.names.values()))),
            yOffset=PLACE,
            color=KEY,
        )
    )
    return layer


def _points(figure: Dots, marks: Marks, named: Keys) -> Iterable[alt.Chart]:
    """The values: a layer for each name, with a shape of its own, on each side."""
    names = list(dict.fromkeys(name for name, _ in named))
    for (name, _), key in named.items():
        yield (
            alt.Chart(alt.InlineData(values=marks))
            .transform_filter((alt.datum.name == name) & (alt.datum.key == key))
            .mark_point(
                shape=SHAPES[names.index(name) % len(SHAPES)],
                size=65,
                filled=key != "plain",
                opacity=1,
                strokeWidth=2,
            )
            .encode(
                x=alt.X("value:Q"),
                y=alt.Y("row:N"),
                yOffset=PLACE,
                color=KEY,
                tooltip=[
                    alt.Tooltip("row:N", title="what"),
                    alt.Tooltip("name:N", title="which"),
                    alt.Tooltip("reading:N", title=figure.x.label),
                ],
            )
        )


def _names(marks: Marks, frame: Frame) -> Iterable[alt.Chart]:
    """Each dot's name beside its interval, or over it where that leaves no room on either side."""
    placed: dict[str, Marks] = {where: [] for where in _TEXT}
    for mark in marks:
        where = _place(*(frame.height(mark[each]) for each in ("low", "value", "high")))
        if not mark["alone"]:
            placed[where].append({**mark, "end": mark[_END[where]]})
    for where, some in placed.items():
        yield (
            alt.Chart(alt.InlineData(values=some))
            .mark_text(**_TEXT[where], fontSize=10.5, fontWeight="bold")
            .encode(
                x=alt.X("end:Q"),
                y=alt.Y("row:N"),
                yOffset=PLACE,
                text=alt.Text("name:N"),
                color=KEY,
            )
        )


def _place(low: float, value: float, high: float) -> str:
    """Return where the name of a dot has room, of its places from 0 (left) to 1 (right)."""
    if high < 2 / 3:
        return "right"
    if low > 1 / 4:
        return "left"
    return "over, from it" if value < 1 / 2 else "over, up to it"


_END = {"right": "high", "left": "low", "over, from it": "value", "over, up to it": "value"}
_TEXT: dict[str, dict[str, Any]] = {
    "right": {"align": "left", "dx": 8},
    "left": {"align": "right", "dx": -8},
    "over, from it": {"align": "left", "dy": -9},
    "over, up to it": {"align": "right", "dy": -9},
}


def _rule(rule: Rule) -> Iterable[alt.Chart]:
    """A thin line down, with its label over its upper end."""
    data = alt.InlineData(values=[{"value": rule.value, "text": rule.label}])
    yield alt.Chart(data).mark_rule(strokeDash=[2, 2], opacity=0.8).encode(x=alt.X("value:Q"))
    label = alt.Chart(data).mark_text(align="left", dx=3, fontSize=10, baseline="bottom")
    yield label.encode(x=alt.X("value:Q"), y=alt.value(-3), text=alt.Text("text:N"))


def _in_words(figure: Dots) -> str:
    found = [
        f"{dot.row}, {dot.name}: {'nothing' if dot.value is None else _reading(dot)}"
        for dot in figure.dots
    ]
    return f"{figure.title}: {'; '.join(found)}."
