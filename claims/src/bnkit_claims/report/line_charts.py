"""Curves with their bands, each named at its end, in panels that share both axes."""

from typing import Any

import altair as alt

from bnkit.report.charts import HEIGHT, READINGS, Panel, Row, end_names, layer
from bnkit.report.scales import Scale
from bnkit_claims.core.charts import Line, Lines, Rule
from bnkit_claims.report.axes_and_colours import (
    across,
    colours,
    keys,
    labels,
    scale_of,
    stroke,
    titled,
)


def panels_of_lines(record: Lines, name: str) -> tuple[Panel, ...]:
    """Return a panel for each name in the lines' `panel`, in the order in which they come."""
    ruled = [] if record.rule is None else [record.rule.value]
    x = scale_of(record.x, (x for line in record.lines for x in line.x))
    values = (v for line in record.lines for part in (line.y, line.low, line.high) for v in part)
    y = scale_of(record.y, [*values, *ruled])
    titles = dict.fromkeys(line.panel for line in record.lines)
    return tuple(
        Panel(
            name=f"{name}-{number}",
            description=_in_words(record, title),
            layers=_layers(record, title, x, y),
            title=titled(title, record.y.label),
            height=1.4 * HEIGHT,
            colour=colours(keys(record.lines)),
        )
        for number, title in enumerate(titles)
    )


def _layers(record: Lines, title: str, x: Scale, y: Scale) -> list[Any]:
    """Bands, lines, a rule, and names; the bands bring the axes, which the others share."""
    lines, named = [line for line in record.lines if line.panel == title], keys(record.lines)
    shared = {"x": across(x, "x", record.x.label), "color": "key:N"}
    bands, curves = [], []
    for line in lines:
        key = {"key": named[line.name, line.side]}
        rows = [key | row for row in _band(line, y)]
        look: dict[str, Any] = {"opacity": 0.18, "clip": True}
        low = y.y("low", **labels(y))
        bands.append(layer("area", rows, look, y=low, y2="high", **shared))
        rows = [key | row for row in _curve(record, line, y)]
        look = {**stroke(named, line), "clip": True}
        middle = y.y("y", **labels(y))
        curves.append(layer("line", rows, look, y=middle, **shared))
        points = [row for row in rows if row["y"] is not None]
        shown = points[:: -(-len(points) // READINGS) or 1]
        curves.append(
            layer("point", shown, _points(line), y=middle, description="reading:N", **shared)
        )
    ends = [
        {"x": end[0], "y": end[1], "key": named[line.name, line.side], "name": line.name}
        for line in lines
        if (end := _end(line))
    ]
    return [
        *bands,
        *curves,
        *([] if record.rule is None else _rule(record.rule, x.low)),
        end_names(ends, y, "y", x="x:Q", color="key:N"),
    ]


def _band(line: Line, scale: Scale) -> list[Row]:
    return [
        {"x": x, "low": scale.inside(low), "high": scale.inside(high)}
        for x, low, high in zip(line.x, line.low or line.y, line.high or line.y, strict=True)
        if low is not None and high is not None
    ]


def _curve(record: Lines, line: Line, scale: Scale) -> list[Row]:
    return [
        {
            "x": x,
            "y": None if y is None else scale.inside(y),
            "reading": "" if y is None else f"{line.name}\n{record.x.label} {x:g}: {y:.4g}",
        }
        for x, y in zip(line.x, line.y, strict=True)
    ]


def _points(line: Line) -> dict[str, Any]:
    """Points that show where few values are, and else only where the pointer finds them."""
    few = len(line.x) <= 12
    return {"filled": True, "clip": True, "size": 25 if few else 80, "opacity": 1 if few else 0}


def _rule(rule: Rule, left: float) -> list[alt.Chart]:
    """A thin line across, with its label at its left end."""
    rows = [{"x": left, "y": rule.value, "text": rule.label}]
    look = {"align": "left", "dx": 4, "dy": -6, "fontSize": 10}
    return [
        layer("rule", rows, {"opacity": 0.7, "strokeDash": [2, 2]}, y="y:Q"),
        layer("text", rows, look, x="x:Q", y="y:Q", text="text:N"),
    ]


def _end(line: Line) -> tuple[float, float] | None:
    points = [
        (x, y) for x, y in zip(line.x, line.y, strict=True) if x is not None and y is not None
    ]
    return points[-1] if points else None


def _in_words(record: Lines, title: str) -> str:
    ends = [
        f"{line.name} ends at {end[1]:.3g}"
        for line in record.lines
        if line.panel == title and (end := _end(line))
    ]
    return f"{record.title}{f', {title}' if title else ''}: {'; '.join(ends)}."
