"""Curves with their bands, each named at its end, in panels that share both axes."""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from bnkit.report.figure import Panel
from bnkit.report.frames import Frame
from bnkit.report.panels import HEIGHT
from bnkit_claims.core.figures import Line, Lines, Rule
from bnkit_claims.report.axes import frame_of, scale_of, ticks_of, titled
from bnkit_claims.report.colours import KEY, Keys, colours, keys, stroke


def panels_of_lines(figure: Lines, name: str) -> tuple[Panel, ...]:
    """Return a panel for each name in the lines' `panel`, in the order in which they come."""
    ruled = [] if figure.rule is None else [figure.rule.value]
    across = frame_of(figure.x, (x for line in figure.lines for x in line.x))
    values = (v for line in figure.lines for part in (line.y, line.low, line.high) for v in part)
    upright = frame_of(figure.y, [*values, *ruled])
    titles = dict.fromkeys(line.panel for line in figure.lines)
    return tuple(
        Panel(
            name=f"{name}-{number}",
            words=_in_words(figure, title),
            drawing=_drawing(figure, title, across, upright),
        )
        for number, title in enumerate(titles)
    )


def _drawing(figure: Lines, title: str, across: Frame, upright: Frame) -> alt.LayerChart:
    lines = [line for line in figure.lines if line.panel == title]
    named = keys(figure.lines)
    layers: list[Any] = [
        *(_band(line, named, across, upright) for line in lines),
        *(_curve(line, named, across, upright) for line in lines),
        *([] if figure.rule is None else _rule(figure.rule, across)),
        _names(lines, named, upright),
    ]
    drawing: alt.LayerChart = (
        alt.layer(*layers)
        .encode(color=colours(named))
        .properties(height=1.4 * HEIGHT, title=titled(title, upright.label))
    )
    return drawing


def _band(line: Line, named: Keys, across: Frame, upright: Frame) -> alt.Chart:
    """The range around a line; it brings the axes, which the layers after it share."""
    low, high = line.low or line.y, line.high or line.y
    rows = [
        {
            "x": x,
            "low": upright.inside(a),
            "high": upright.inside(b),
            "key": named[line.name, line.side],
        }
        for x, a, b in zip(line.x, low, high, strict=True)
        if a is not None and b is not None
    ]
    layer: alt.Chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_area(opacity=0.18, clip=True)
        .encode(x=_across(across), y=_upright(upright, "low"), y2=alt.Y2("high"), color=KEY)
    )
    return layer


def _curve(line: Line, named: Keys, across: Frame, upright: Frame) -> alt.Chart:
    rows = [
        {
            "x": x,
            "y": None if y is None else upright.inside(y),
            "key": named[line.name, line.side],
            "name": line.name,
            "reading": "nothing" if y is None else f"{y:.4g}",
        }
        for x, y in zip(line.x, line.y, strict=True)
    ]
    readings = [
        alt.Tooltip("name:N", title="line"),
        alt.Tooltip("x:Q", title=across.label, format="~g"),
        alt.Tooltip("reading:N", title=upright.label),
    ]
    points = {"size": 25, "filled": True} if len(rows) <= 12 else {"size": 60, "opacity": 0}
    layer: alt.Chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(**stroke(named, line), point=points, clip=True)
        .encode(x=_across(across), y=_upright(upright, "y"), color=KEY, tooltip=readings)
    )
    return layer


def _across(frame: Frame) -> alt.X:
    return alt.X("x:Q", axis=ticks_of(frame, title=frame.label, grid=False), scale=scale_of(frame))


def _upright(frame: Frame, field: str) -> alt.Y:
    axis = ticks_of(frame, title=None, grid=True)
    return alt.Y(f"{field}:Q", axis=axis, scale=scale_of(frame))


def _rule(rule: Rule, across: Frame) -> Iterable[alt.Chart]:
    """A thin line across, with its label at its left end."""
    data = alt.InlineData(values=[{"x": across.low, "y": rule.value, "text": rule.label}])
    yield alt.Chart(data).mark_rule(opacity=0.7, strokeDash=[2, 2]).encode(y=alt.Y("y:Q"))
    label = alt.Chart(data).mark_text(align="left", dx=4, dy=-6, fontSize=10)
    yield label.encode(x=alt.X("x:Q"), y=alt.Y("y:Q"), text=alt.Text("text:N"))


def _names(lines: Sequence[Line], named: Keys, upright: Frame) -> alt.Chart:
    """Each line's name right of its last point, moved apart where they would overlap."""
    ends = [(line, end) for line in lines if (end := _end(line))]
    heights = upright.apart([y for _, (_, y) in ends])
    rows: list[dict[str, Any]] = [
        {"x": x, "y": height, "key": named[line.name, line.side], "name": line.name}
        for (line, (x, _)), height in zip(ends, heights, strict=True)
    ]
    layer: alt.Chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_text(align="left", dx=6, fontWeight="bold", fontSize=11)
        .encode(x=alt.X("x:Q"), y=alt.Y("y:Q"), text=alt.Text("name:N"), color=KEY)
    )
    return layer


def _end(line: Line) -> tuple[float, float] | None:
    points = [
        (x, y) for x, y in zip(line.x, line.y, strict=True) if x is not None and y is not None
    ]
    return points[-1] if points else None


def _in_words(figure: Lines, title: str) -> str:
    ends = [
        f"{line.name} ends at {end[1]:.3g}"
        for line in figure.lines
        if line.panel == title and (end := _end(line))
    ]
    return f"{figure.title}{f', {title}' if title else ''}: {'; '.join(ends)}."
