"""Heat maps of functions of two parameters, and grey pictures, side by side."""

import itertools
from collections.abc import Sequence
from typing import Any

import altair as alt

from bnkit.report.figure import Panel
from bnkit_claims.core.figures import Axis, Picture, Pictures, Surface, Surfaces, Values
from bnkit_claims.report.axes import frame_of, scale_of, ticks_of, titled

SIDE = 190  # pixels
INK = alt.Scale(domain=[0, 1], scheme="greys")
LEVELS = 9  # colours of a surface: their edges are its contours


def panels_of_surfaces(figure: Surfaces, name: str) -> tuple[Panel, ...]:
    """Return a panel for each surface: filled contours in one colour, dark where it is high."""
    scale = alt.Scale(
        type="threshold",
        domain=_levels(figure),
        scheme={"name": "viridis", "count": LEVELS},
    )
    return tuple(
        Panel(
            name=f"{name}-{number}",
            words=f"{figure.title}, {surface.panel}: from {_range(surface)}.",
            drawing=_surface(figure, surface, scale),
        )
        for number, surface in enumerate(figure.surfaces)
    )


def _levels(figure: Surfaces) -> list[float]:
    """Return the values of the contours, evenly spread, by their logarithms where the axis is."""
    frame = frame_of(
        figure.value, [v for s in figure.surfaces for row in s.values for v in row if v is not None]
    )
    exact = [frame.value(n / LEVELS) for n in range(1, LEVELS)]
    for digits in range(2, 6):
        levels = [float(f"{value:.{digits}g}") for value in exact]
        if len(set(levels)) == len(levels):
            return levels
    return exact


def _range(surface: Surface) -> str:
    values = [v for row in surface.values for v in row if v is not None]
    return f"{min(values):.3g} to {max(values):.3g}" if values else "nothing to nothing"


def _surface(figure: Surfaces, surface: Surface, scale: alt.Scale) -> Any:
    rows = [
        {"x": x0, "x2": x1, "y": y0, "y2": y1, "value": surface.values[i][j]}
        for i, (y0, y1) in enumerate(_cells(surface.y, figure.y))
        for j, (x0, x1) in enumerate(_cells(surface.x, figure.x))
    ]
    across, upright = (
        frame_of(axis, [v for cell in _cells(values, axis) for v in cell])
        for axis, values in ((figure.x, surface.x), (figure.y, surface.y))
    )
    legend = alt.Legend(title=figure.value.label, format="~g", orient="bottom", titleLimit=400)
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_rect(clip=True, strokeWidth=0.7)
        .encode(
            x=alt.X(
                "x:Q", axis=ticks_of(across, title=across.label, grid=False), scale=scale_of(across)
            ),
            x2=alt.X2("x2"),
            y=alt.Y("y:Q", axis=ticks_of(upright, title=None, grid=False), scale=scale_of(upright)),
            y2=alt.Y2("y2"),
            color=alt.Color("value:Q", scale=scale, legend=legend),
            stroke=alt.Stroke("value:Q", scale=scale, legend=None),  # no gaps between cells
            tooltip=[alt.Tooltip("value:Q", title=figure.value.label, format=".4g")],
        )
    )
    title = titled(surface.panel, upright.label)
    drawing: Any = alt.layer(chart).properties(height=SIDE, title=title)
    return drawing


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


def panels_of_pictures(figure: Pictures, name: str) -> tuple[Panel, ...]:
    """Return a panel for each picture, dark ink on light paper in either mode."""
    return tuple(
        Panel(
            name=f"{name}-{number}",
            words=f"{figure.title}: {picture.panel}.",
            drawing=_picture(picture),
        )
        for number, picture in enumerate(figure.pictures)
    )


def _picture(picture: Picture) -> Any:
    rows = list(_pixels(picture.values))
    wide, high = len(picture.values[0]), len(picture.values)
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_rect(strokeWidth=0.7)
        .encode(
            x=alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, wide], nice=False)),
            x2=alt.X2("x2"),
            y=alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[0, high], reverse=True, nice=False)),
            y2=alt.Y2("y2"),
            color=alt.Color("ink:Q", scale=INK, legend=None),
            stroke=alt.Stroke("ink:Q", scale=INK, legend=None),  # no gaps between pixels
        )
    )
    drawing: Any = alt.layer(chart).properties(
        height=round(SIDE * 1.4 * high / wide), title=alt.Title(picture.panel)
    )
    return drawing


def _pixels(values: Sequence[Values]) -> Any:
    for y, row in enumerate(values):
        for x, ink in enumerate(row):
            yield {"x": x, "x2": x + 1, "y": y, "y2": y + 1, "ink": round(ink or 0, 2)}
