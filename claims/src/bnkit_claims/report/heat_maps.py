"""Heat maps of functions of two parameters, and grey pictures, side by side."""

import itertools
from collections.abc import Iterable
from typing import Any

import altair as alt

from bnkit.report.charts import Panel, Row, layer
from bnkit_claims.core.charts import Axis, Picture, Pictures, Surface, Surfaces, Values
from bnkit_claims.report.axes_and_colours import across, labels, scale_of, titled

SIDE = 190  # pixels
INK = alt.Scale(domain=[0, 1], scheme="greys")
LEVELS = 9  # colours of a surface: their edges are its contours


def panels_of_surfaces(record: Surfaces, name: str) -> tuple[Panel, ...]:
    """Return a panel for each surface: filled contours in one colour, dark where it is high."""
    scheme = {"name": "viridis", "count": LEVELS}
    scale = alt.Scale(type="threshold", domain=_levels(record), scheme=scheme)
    return tuple(
        Panel(
            name=f"{name}-{number}",
            description=f"{record.title}, {surface.panel}: from {_range(surface)}.",
            layers=[_surface(record, surface, scale)],
            title=titled(surface.panel, record.y.label),
            height=SIDE,
        )
        for number, surface in enumerate(record.surfaces)
    )


def _levels(record: Surfaces) -> list[float]:
    """Return the values of the contours, evenly spread, by their logarithms where the axis is."""
    scale = scale_of(record.value, [v for s in record.surfaces for row in s.values for v in row])
    exact = [scale.value(n / LEVELS) for n in range(1, LEVELS)]
    for digits in range(2, 6):
        levels = [float(f"{value:.{digits}g}") for value in exact]
        if len(set(levels)) == len(levels):
            return levels
    return exact


def _range(surface: Surface) -> str:
    values = [v for row in surface.values for v in row if v is not None]
    return f"{min(values):.3g} to {max(values):.3g}" if values else "nothing to nothing"


def _surface(record: Surfaces, surface: Surface, scale: alt.Scale) -> alt.Chart:
    columns, lines = _cells(surface.x, record.x), _cells(surface.y, record.y)
    rows = [
        {"x": x0, "x2": x1, "y": y0, "y2": y1, "value": surface.values[i][j]}
        for i, (y0, y1) in enumerate(lines)
        for j, (x0, x1) in enumerate(columns)
    ]
    x = scale_of(record.x, itertools.chain(*columns))
    y = scale_of(record.y, itertools.chain(*lines))
    legend = alt.Legend(
        title=record.value.label, format="~g", orient="bottom", titleLimit=400, columns=3
    )
    return _rectangles(
        rows,
        {"shorthand": "value:Q", "scale": scale},
        legend,
        clip=True,
        x=across(x, "x", record.x.label),
        y=y.y("y", **labels(y), grid=False),
    )


def _rectangles(
    rows: Iterable[Row], ink: Any, legend: Any, *, clip: bool = False, **channels: Any
) -> alt.Chart:
    """Rectangles from x to x2 and y to y2; their strokes close the gaps between them."""
    colours = {"color": alt.Color(**ink, legend=legend), "stroke": alt.Stroke(**ink, legend=None)}
    look = {"strokeWidth": 0.7, "clip": clip}
    return layer("rect", rows, look, x2="x2", y2="y2", **colours, **channels)


def _cells(values: Values, axis: Axis) -> list[tuple[float, float]]:
    """Return the ends of the cell around each value, which lie halfway to its neighbours."""
    numbers = [v for v in values if v is not None]
    if axis.logarithmic:
        inner = [(a * b) ** 0.5 for a, b in itertools.pairwise(numbers)]
        edges = [numbers[0] ** 2 / inner[0], *inner, numbers[-1] ** 2 / inner[-1]]
    else:
        inner = [(a + b) / 2 for a, b in itertools.pairwise(numbers)]
        edges = [2 * numbers[0] - inner[0], *inner, 2 * numbers[-1] - inner[-1]]
    return list(itertools.pairwise(edges))


def panels_of_pictures(record: Pictures, name: str) -> tuple[Panel, ...]:
    """Return a panel for each picture, dark ink on light paper in either mode."""
    return tuple(
        Panel(
            name=f"{name}-{number}",
            description=f"{record.title}: {picture.panel}.",
            layers=[_picture(picture)],
            title=alt.Title(picture.panel),
            height=round(SIDE * 1.4 * len(picture.values) / len(picture.values[0])),
        )
        for number, picture in enumerate(record.pictures)
    )


def _picture(picture: Picture) -> alt.Chart:
    wide, high = len(picture.values[0]), len(picture.values)
    rows = [
        {"x": x, "x2": x + 1, "y": y, "y2": y + 1, "ink": round(ink or 0, 2)}
        for y, row in enumerate(picture.values)
        for x, ink in enumerate(row)
    ]
    return _rectangles(
        rows,
        {"shorthand": "ink:Q", "scale": INK},
        None,
        x=alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, wide], nice=False)),
        y=alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[0, high], reverse=True, nice=False)),
    )
