"""Charts: layers in panels, panels in groups; drawn one by one on a page, all on a sheet."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import altair as alt

from bnkit.report.chart_engine import png_of, svg_of
from bnkit.report.palette import PAGE, PAPER
from bnkit.report.scales import Scale
from bnkit.report.svg import inlined

HEIGHT = 140  # pixels
WIDTH = 360  # pixels of a panel on a page, its labels included, as a phone has them
STRETCHED = 1.4  # how many times as wide as it is drawn a page may show a panel
PADDING = {"left": 6, "right": 14, "top": 2, "bottom": 2}  # for fonts wider than the engine's
READINGS = 24  # under the pointer, in a panel: each has a band that a pointer can hit
ONCE: Any = ({},)  # rows of a mark that needs no data and is drawn once

Row = dict[str, Any]


def layer(
    mark: str, rows: Iterable[Row] | None, look: Mapping[str, Any], **channels: Any
) -> alt.Chart:
    """Return a mark for each row, with this look; `channels` say which field is drawn where.

    Without rows of its own, a layer draws those of its panel. A `description` is shown on the page
    under the pointer.
    """
    kind: Any = mark
    if "description" not in channels:
        look = {**look, "aria": False}  # or the engine would make up a description
    data = alt.Undefined if rows is None else alt.InlineData(values=list(rows))
    # Altair's encode is not typed; here alone its result is said to be a chart.
    drawn: alt.Chart = alt.Chart(data, mark=alt.MarkDef(kind, **look)).encode(**channels)
    return drawn


def end_names(rows: Sequence[Row], scale: Scale, y: str, **channels: Any) -> alt.Chart:
    """Return each row's `name`, right of the end of its line, moved apart where they overlap."""
    moved = scale.apart([row[y] for row in rows])
    placed = [row | {y: value} for row, value in zip(rows, moved, strict=True)]
    look = {"align": "left", "dx": 6, "fontWeight": "bold", "fontSize": 11}
    return layer("text", placed, look, y=f"{y}:Q", text="name:N", **channels)


def hover(field: str, rows: Sequence[Row]) -> alt.Chart:
    """Return invisible bands side by side along `field`, each with the `reading` of its row."""
    every = -(-len(rows) // READINGS) or 1
    shown = rows[(len(rows) - 1) % every :: every]  # the last among them
    look = {"opacity": 0, "strokeWidth": max(4, 250 / max(len(shown), 1))}
    return layer("rule", shown, look, x=f"{field}:Q", description="reading:N")


@dataclass(frozen=True)
class Panel:
    """One drawing, and in words what it shows.

    `data` is of the layers that have no rows of their own, `colour` of all layers that ask for it.
    On the page it is drawn `width` pixels wide, labels included, and `hover` is drawn over it:
    readings under the pointer.
    """

    name: str
    description: str
    layers: Sequence[Any]
    title: Any = alt.Undefined
    height: float = HEIGHT
    data: Any = alt.Undefined
    colour: Any = alt.Undefined
    width: float = WIDTH
    hover: alt.Chart | None = None

    @property
    def drawing(self) -> Any:
        """The layers over each other."""
        chart = alt.layer(*self.layers, data=self.data, title=self.title, height=self.height)
        return chart.encode(color=self.colour)

    @property
    def on_page(self) -> dict[str, Any]:
        """The Vega-Lite specification for the page, its colours variables of the style sheet."""
        chart = self.drawing if self.hover is None else self.drawing + self.hover
        fit = alt.AutoSizeParams(type="fit-x", contains="padding")
        chart = chart.properties(width=self.width, autosize=fit, padding=PADDING)
        specification: dict[str, Any] = chart.configure(**PAGE.config).to_dict(validate=False)
        return specification

    @cached_property
    def svg(self) -> str:
        """The drawing for the page, which needs no script; it serves light, dark and paper."""
        return inlined(svg_of(self.on_page), self.name, widest=STRETCHED * self.width)


@dataclass(frozen=True)
class Group:
    """Panels that belong side by side, under a heading (none where it is empty)."""

    heading: str
    panels: tuple[Panel, ...]

    @property
    def columns(self) -> int:
        """How many panels are in a row where there is room: at most 4, the rows evenly filled."""
        rows = -(-len(self.panels) // 4)
        return -(-len(self.panels) // rows)


@dataclass(frozen=True)
class Chart:
    """What is shown, how to read it (a sentence each), and the panels in their groups.

    In a file a panel's axes are `width` pixels wide, with `room` to the next for its labels.
    """

    name: str
    title: str
    caption: tuple[str, ...]
    groups: tuple[Group, ...]
    width: int
    room: int

    @property
    def panels(self) -> tuple[Panel, ...]:
        """The panels of all groups."""
        return tuple(panel for group in self.groups for panel in group.panels)

    @property
    def on_sheet(self) -> dict[str, Any]:
        """The Vega-Lite specification of one sheet with all panels, for a file."""
        title = alt.Title(self.title, subtitle=list(self.caption), fontSize=16, offset=20)
        rows = [self.row(group) for group in self.groups]
        sheet = alt.vconcat(*rows, title=title, spacing=35, padding=20).configure(**PAPER.config)
        specification: dict[str, Any] = sheet.to_dict(validate=False)
        return specification

    def row(self, group: Group) -> alt.ConcatChart:
        """Return the panels of a group side by side, for a file."""
        return alt.concat(
            *(panel.drawing.properties(width=self.width) for panel in group.panels),
            columns=group.columns,
            bounds="flush",  # the axes line up; so the spacing holds titles and labels as well
            spacing=alt.RowColnumber(row=100, column=self.room),
            title=alt.Title(group.heading, fontSize=14),
        )


def export(specification: dict[str, Any], *, scale: int = 2) -> dict[str, bytes]:
    """Return a Vega-Lite specification drawn as SVG and, `scale` pixels a point, as PNG."""
    svg = svg_of(specification)
    return {".svg": svg.encode(), ".png": png_of(svg, scale=scale)}
