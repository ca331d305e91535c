"""Values with their intervals, a row for each thing that was measured."""

from collections.abc import Iterable
from textwrap import wrap
from typing import Any

import altair as alt

from bnkit.lab.claiming.figures import Dot, Dots, Rule
from bnkit.report.claims.axes import frame_of, scale_of, ticks_of
from bnkit.report.claims.colours import KEY, Keys, colours, keys
from bnkit.report.figure import Panel
from bnkit.report.frames import Frame

SHAPES = ("circle", "diamond", "square", "triangle-up", "triangle-down", "cross")
LABEL = "split(datum.label, '\\n')"  # in lines
ROOM = 15  # pixels for a dot with its name
BETWEEN = 14  # pixels more for a row


def panels_of_dots(figure: Dots, name: str) -> tuple[Panel, ...]:
    """Return the one panel: in each row its dots under each other, each with its name beside it."""
    ruled = [] if figure.rule is None else [figure.rule.value]
    values = (v for dot in figure.dots for v in (dot.value, dot.low, dot.high))
    frame = frame_of(figure.x, [*values, *ruled])
    named = keys(figure.dots)
    rows = list(dict.fromkeys(_wrapped(dot.row) for dot in figure.dots))
    height = ROOM * max(len(figure.dots), 2) + BETWEEN * len(rows)
    layers: list[Any] = [
        _intervals(figure, named, frame, rows),
        *([] if figure.rule is None else _rule(figure.rule)),
        *(_points(figure, named, name, key) for (name, _), key in named.items()),
        _names(figure, named, frame),
    ]
    drawing: Any = alt.layer(*layers).encode(color=colours(named)).properties(height=height)
    return (Panel(name=f"{name}-0", words=_in_words(figure), drawing=drawing),)


def _rows(figure: Dots, named: Keys) -> Iterable[dict[str, Any]]:
    for dot in figure.dots:
        if dot.value is not None:
            yield {
                "row": _wrapped(dot.row),
                "name": dot.name,
                "key": named[dot.name, dot.side],
                "value": dot.value,
                "low": dot.value if dot.low is None else dot.low,
                "high": dot.value if dot.high is None else dot.high,
                "reading": _reading(dot),
            }


def _wrapped(row: str) -> str:
    """Return the name of a row in lines that leave room for its dots on a phone."""
    return "\n".join(wrap(row, 20)) or " "


def _order(named: Keys) -> list[str]:
    """Return the names, each once: the order of the dots in a row."""
    return list(dict.fromkeys(name for name, _ in named))


def _reading(dot: Dot) -> str:
    interval = "" if dot.low is None or dot.high is None else f" ({dot.low:.3g} to {dot.high:.3g})"
    return f"{dot.value:.3g}{interval}"


def _data(figure: Dots, named: Keys) -> alt.InlineData:
    return alt.InlineData(values=list(_rows(figure, named)))


def _intervals(figure: Dots, named: Keys, frame: Frame, rows: list[str]) -> alt.Chart:
    """The intervals; they bring the axes, which the layers after them share."""
    axis = ticks_of(frame, title=frame.label, grid=True)
    upright = alt.Y(
        "row:N",
        axis=alt.Axis(title=None, grid=True, tickBand="extent", labelLimit=150, labelExpr=LABEL),
        scale=alt.Scale(domain=rows),
    )
    layer: alt.Chart = (
        alt.Chart(_data(figure, named))
        .mark_rule(strokeWidth=2, opacity=0.7)
        .encode(
            x=alt.X("low:Q", axis=axis, scale=scale_of(frame)),
            x2=alt.X2("high"),
            y=upright,
            color=KEY,
            yOffset=alt.YOffset("name:N", sort=_order(named)),
        )
    )
    return layer


def _points(figure: Dots, named: Keys, name: str, key: str) -> alt.Chart:
    shape = SHAPES[_order(named).index(name) % len(SHAPES)]
    layer: alt.Chart = (
        alt.Chart(_data(figure, named))
        .transform_filter((alt.datum.name == name) & (alt.datum.key == key))
        .mark_point(shape=shape, size=65, filled=key != "plain", opacity=1, strokeWidth=2)
        .encode(
            x=alt.X("value:Q"),
            y=alt.Y("row:N"),
            color=KEY,
            yOffset=alt.YOffset("name:N", sort=_order(named)),
            tooltip=[
                alt.Tooltip("row:N", title="what"),
                alt.Tooltip("name:N", title="which"),
                alt.Tooltip("reading:N", title=figure.x.label),
            ],
        )
    )
    return layer


def _names(figure: Dots, named: Keys, frame: Frame) -> Any:
    """Each dot's name beside its interval: left of those that end in the right third."""
    rows = [{**row, "left": frame.height(row["high"]) > 2 / 3} for row in _rows(figure, named)]
    for row in rows:
        row["place"] = row["low"] if row["left"] else row["high"]
    data = alt.InlineData(values=rows)
    parts: list[Any] = []
    for left in (True, False):
        mark = alt.Chart(data).transform_filter(f"datum.left === {str(left).lower()}")
        align: dict[str, Any] = {"align": "right", "dx": -8} if left else {"align": "left", "dx": 8}
        parts.append(
            mark.mark_text(**align, fontSize=10.5, fontWeight="bold").encode(
                x=alt.X("place:Q"),
                y=alt.Y("row:N"),
                yOffset=alt.YOffset("name:N", sort=_order(named)),
                text=alt.Text("name:N"),
                color=KEY,
            )
        )
    return alt.layer(*parts)


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
