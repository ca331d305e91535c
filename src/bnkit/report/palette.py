"""Colours, strokes and type of the charts: blue and vermillion, which everyone can tell apart.

The two are M. Okabe's and K. Ito's ("Color universal design", 2008), the vermillion darkened until
small text in it is legible. On the page the colours are the style sheet's variables, so that one
drawing serves light, dark and paper; in the exported files, which have no style sheet, they are its
light ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from bnkit.experiments.results import SIDES, Side

# Width and dashes tell the sides apart without colour.
STROKES: tuple[dict[str, Any], ...] = (
    {"strokeWidth": 1.75, "strokeDash": [5, 3]},
    {"strokeWidth": 2.5},
    {"strokeWidth": 2, "strokeDash": [1, 3]},
    {"strokeWidth": 2, "strokeDash": [8, 3, 2, 3]},
    {"strokeWidth": 1.25},
    {"strokeWidth": 1.25, "strokeDash": [2, 2]},
)
STROKE: dict[Side, dict[str, Any]] = dict(zip(SIDES, STROKES, strict=False))
FONT = "system-ui, 'Segoe UI', Helvetica, Arial, 'Liberation Sans', sans-serif"


def fields_of(sides: Sequence[Side]) -> dict[Side, str]:
    """Return how the sides are called in the data of charts: names of users may hold anything."""
    return {side: f"side_{n}" for n, side in enumerate(sides)}


def side_colours(sides: Sequence[Side]) -> alt.Color:
    """Return the colours of the sides, in their order."""
    return alt.Color(scale=alt.Scale(domain=list(sides)), legend=None)


def stroke_of(side: Side, sides: Sequence[Side]) -> dict[str, Any]:
    """Return the width and the dashes of a side's line."""
    return STROKES[list(sides).index(side) % len(STROKES)]


@dataclass(frozen=True)
class Palette:
    """A colour, in any form that a browser reads, for each element of a chart."""

    paper: str
    ink: str
    muted: str
    grid: str
    plain: str
    batch_norm: str
    others: tuple[str, ...]  # of what belongs to no side

    @property
    def config(self) -> dict[str, Any]:
        """The look of all charts, as a Vega-Lite configuration."""
        return {
            "background": self.paper,
            "font": FONT,
            "view": {"stroke": None},
            "range": {"category": [self.plain, self.batch_norm, *self.others]},
            "rule": {"color": self.muted},
            "text": {"color": self.muted},
            "title": {
                "anchor": "start",
                "frame": "group",
                "color": self.ink,
                "fontSize": 12,
                "subtitleColor": self.muted,
                "subtitleFontSize": 11,
                "subtitlePadding": 2,
                "offset": 8,
            },
            "axis": {
                "labelColor": self.muted,
                "titleColor": self.muted,
                "titleFontWeight": "normal",
                "titleFontSize": 11,
                "gridColor": self.grid,
                "domain": False,
                "ticks": False,
                "labelPadding": 5,
            },
            "legend": {"labelColor": self.muted, "titleColor": self.ink},
            "axisX": {"grid": False, "domain": True, "domainColor": self.muted},
        }


PAGE = Palette(
    paper="transparent",
    ink="var(--ink)",
    muted="var(--muted)",
    grid="var(--grid)",
    plain="var(--plain)",
    batch_norm="var(--batch-norm)",
    others=tuple(f"var(--other-{n})" for n in range(1, 7)),
)
PAPER = Palette(
    paper="#ffffff",
    ink="#1a1d21",
    muted="#5a626b",
    grid="#e4e7ea",
    plain="#c04e00",
    batch_norm="#0072b2",
    others=("#00785a", "#a8497f", "#8a6500", "#5a626b", "#3a86c8", "#1a1d21"),
)
