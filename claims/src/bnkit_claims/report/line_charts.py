"""Curves with their bands, each named at its end, in panels that share both axes."""

from typing import Any

import altair as alt

from bnkit.report.charts import HEIGHT, Panel, Row, end_names, layer
from bnkit.report.scales import Scale
from bnkit_claims.core.charts import Line, Lines, Rule
from bnkit_claims.report.axes_and_colours import (
    Keys,
    across,
    colours,
    keys,
    labels,
    scale_of,
    stroke,
    titled,
)


def panels_of_lines(figure: Lines, name: str) -> tuple[Panel, ...]:
    """Return a panel for each name in the lines' `panel`, in the order in which they come."""
    ruled = [] if figure.rule is None else [figure.rule.value]
    x = scale_of(figure.x, (x for line in figure.lines for x in line.x))
    values = (v for line in figure.lines for part in (line.y, line.low, line.high) for v in part)
    y = scale_of(figure.y, [*values, *ruled])
    titles = dict.fromkeys(line.panel for line in figure.lines)
    return tuple(
        Panel(
            name=f"{name}-{number}",
            description=_in_words(figure, title),
            layers=_layers(figure, title, x, y),
            title=titled(title, figure.y.label),
            height=1.4 * HEIGHT,
            colour=colours(keys(figure.lines)),
        )
        for number, title in enumerate(titles)
    )


def _layers(figure: Lines, title: str, x: Scale, y: Scale) -> list[Any]:
    """Bands, lines, a rule, and names; the bands bring the axes, which the others share."""
    lines = [line for line in figure.lines if line.panel == title]
    named, steps = keys(figure.lines), across(x, "x", figure.x.label)
    shared = {"x": steps, "color": "key:N"}
    readings = [
        alt.Tooltip("name:N", title="line"),
        alt.Tooltip("x:Q", title=figure.x.label, format="~g"),
        alt.Tooltip("reading:N", title=figure.y.label),
    ]
    band, marks = {"opacity": 0.18, "clip": True}, labels(y)
    return [
        *(
            layer("area", _band(line, named, y), band, y=y.y("low", **marks), y2="high", **shared)
            for line in lines
        ),
        *(
            layer(
                "line",
                _curve(line, named, y),
                {**stroke(named, line), "point": _points(line), "clip": True},
                y=y.y("y", **marks),
                tooltip=readings,
                **shared,
            )
            for line in lines
        ),
        *([] if figure.rule is None else _rule(figure.rule, x.low)),
        end_names(_ends(lines, named), y, "y", x="x:Q", color="key:N"),
    ]


def _band(line: Line, named: Keys, scale: Scale) -> list[Row]:
    low, high, key = line.low or line.y, line.high or line.y, named[line.name, line.side]
    return [
        {"x": x, "low": scale.inside(a), "high": scale.inside(b), "key": key}
        for x, a, b in zip(line.x, low, high, strict=True)
        if a is not None and b is not None
    ]


def _curve(line: Line, named: Keys, scale: Scale) -> list[Row]:
    return [
        {
            "x": x,
            "y": None if y is None else scale.inside(y),
            "key": named[line.name, line.side],
            "name": line.name,
            "reading": "nothing" if y is None else f"{y:.4g}",
        }
        for x, y in zip(line.x, line.y, strict=True)
    ]


def _points(line: Line) -> dict[str, Any]:
    """Points that show where few values are, and else only where the pointer finds them."""
    return {"size": 25, "filled": True} if len(line.x) <= 12 else {"size": 60, "opacity": 0}


def _rule(rule: Rule, left: float) -> list[alt.Chart]:
    """A thin line across, with its label at its left end."""
    rows = [{"x": left, "y": rule.value, "text": rule.label}]
    look = {"align": "left", "dx": 4, "dy": -6, "fontSize": 10}
    return [
        layer("rule", rows, {"opacity": 0.7, "strokeDash": [2, 2]}, y="y:Q"),
        layer("text", rows, look, x="x:Q", y="y:Q", text="text:N"),
    ]


def _ends(lines: list[Line], named: Keys) -> list[Row]:
    return [
        {"x": end[0], "y": end[1], "key": named[line.name, line.side], "name": line.name}
        for line in lines
        if (end := _end(line))
    ]


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
