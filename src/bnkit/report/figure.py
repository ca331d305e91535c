"""`Figure`: panels in groups; each panel is drawn on the page, and all of them on one sheet."""

from dataclasses import dataclass
from typing import Any

import altair as alt

from bnkit.report.palette import PAPER

VEGA_LITE = "6.4"  # the version of the drawing language that altair 6 writes


@dataclass(frozen=True)
class Panel:
    """One drawing, and in words what it shows.

    `hovering` is for the page only: readings under the pointer.
    """

    name: str
    words: str
    drawing: alt.LayerChart
    hovering: alt.Chart | None = None

    @property
    def on_page(self) -> dict[str, Any]:
        """The Vega-Lite specification for the page: as wide as its place, its look left open."""
        chart = self.drawing if self.hovering is None else self.drawing + self.hovering
        chart = chart.properties(
            width="container",
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
            padding=2,
            description=self.words,
        )
        return chart.to_dict(validate=False)


@dataclass(frozen=True)
class Group:
    """Panels that belong side by side, under a heading (none where it is empty)."""

    heading: str
    panels: tuple[Panel, ...]

    @property
    def columns(self) -> int:
        """How many panels stand in a row where there is room: at most 4, the rows evenly filled."""
        rows = -(-len(self.panels) // 4)
        return -(-len(self.panels) // rows)


@dataclass(frozen=True)
class Figure:
    """What is shown, how to read it (a sentence each), and the panels in their groups.

    On the sheet a panel's axes are `width` pixels wide, with `room` to the next for its labels.
    """

    name: str
    title: str
    caption: tuple[str, ...]
    groups: tuple[Group, ...]
    width: int
    room: int

    @property
    def on_sheet(self) -> dict[str, Any]:
        """The Vega-Lite specification of one sheet with all panels, for a file."""
        title = alt.Title(self.title, subtitle=list(self.caption), fontSize=16, offset=20)
        rows = [self._row(group) for group in self.groups]
        sheet = alt.vconcat(*rows, title=title, spacing=35, padding=20).configure(**PAPER.config)
        specification: dict[str, Any] = sheet.to_dict(validate=False)
        return specification

    def _row(self, group: Group) -> alt.ConcatChart:
        return alt.concat(
            *(each.drawing.properties(width=self.width) for each in group.panels),
            columns=group.columns,
            bounds="flush",  # the axes line up; so the spacing holds titles and labels as well
            spacing=alt.RowColnumber(row=100, column=self.room),
            title=alt.Title(group.heading, fontSize=14),
        )
