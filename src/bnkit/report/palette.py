"""Colours, strokes and type of the charts: blue and vermillion, which everyone can tell apart.

The two are M. Okabe's and K. Ito's ("Color universal design", 2008), the vermillion darkened until
small text in it is legible. On the page the colours are the style sheet's variables, so that one
drawing serves light, dark and paper; in the exported files, which have no style sheet, they are its
light ones.
"""

from dataclasses import dataclass
from typing import Any

import altair as alt

from bnkit.experiments.results import SIDES, Side

FIELD: dict[Side, str] = {"plain": "plain", "batch norm": "batch_norm"}  # in the data of charts
SIDE_COLOURS = alt.Color(scale=alt.Scale(domain=list(SIDES)), legend=None)
# Width and dashes tell the sides apart without colour.
STROKE: dict[Side, dict[str, Any]] = {
    "plain": {"strokeWidth": 1.75, "strokeDash": [5, 3]},
    "batch norm": {"strokeWidth": 2.5},
}
FONT = "system-ui, 'Segoe UI', Helvetica, Arial, 'Liberation Sans', sans-serif"


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
