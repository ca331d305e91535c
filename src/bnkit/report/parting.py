"""Parting: where a model in eval mode parts from training, drawn through its depth."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from bnkit.diagnosis.layer_records import LayerRecord
from bnkit.report.depth import Row, across, drawing, hover, in_words, placed, thickness
from bnkit.report.figure import Panel
from bnkit.report.palette import PAGE
from bnkit.report.panels import HEIGHT
from bnkit.report.scales import Scale, around_zero

NAMES = {"so_far": "all so far", "own": "by itself"}
COLOURS = {"so_far": PAGE.batch_norm, "own": PAGE.plain}
# Width and dashes tell the lines apart without colour.
STROKES: dict[str, dict[str, Any]] = {
    "so_far": {"color": COLOURS["so_far"], "strokeWidth": 2.5},
    "own": {"color": COLOURS["own"], "strokeWidth": 1.75, "strokeDash": [5, 3]},
}
UNIT = 0.1  # up to the threshold of a difference its axis is nearly linear
DOTTED = 40  # layers up to which each has a dot on its line
LINE = 0.1  # the height of a label as a share of the axis


def parting_panel(layers: Sequence[LayerRecord]) -> Panel | None:
    """Return how far eval mode parts from training, None where that is known of no layer."""
    rows = [
        row | {"so_far": layer.difference, "own": layer.own_difference, "bar": layer.tolerance}
        for row, layer in placed(layers)
        if layer.own_difference is not None
    ]
    if not rows:
        return None
    known = [row[field] for row in rows for field in (*NAMES, "bar") if row[field] is not None]
    scale, count = around_zero(known, UNIT, least=2 * UNIT), len(layers)
    marks = [
        _bars(rows, scale, thickness(layers)),
        *(_line(rows, field, scale, count) for field in NAMES),
        *_names(rows[-1], scale),
        _worst(rows, scale, count),
    ]
    return Panel(
        name="parting",
        words="How far eval mode parts from training at each batch norm, all so far and by itself: "
        f"{in_words(rows, ('so_far', 'own'))}.",
        drawing=drawing(marks, "share of the size of the layer's output"),
        hovering=hover(rows, {NAMES["so_far"]: "so_far", NAMES["own"]: "own", "threshold": "bar"}),
    )


def _bars(rows: Sequence[Row], scale: Scale, width: float) -> alt.Chart:
    """The threshold of each layer, as a tick."""
    layer: alt.Chart = (
        alt.Chart(alt.InlineData(values=[row for row in rows if row["bar"] is not None]))
        .mark_tick(orient="horizontal", width=width, thickness=1.5, color=PAGE.muted)
        .encode(x=alt.X("place:Q"), y=scale.upright("bar"))
    )
    return layer


def _line(rows: Sequence[Row], field: str, scale: Scale, count: int) -> alt.Chart:
    dot: Any = {"point": {"color": COLOURS[field], "size": 22}} if len(rows) <= DOTTED else {}
    layer: alt.Chart = (
        alt.Chart(alt.InlineData(values=[row for row in rows if row[field] is not None]))
        .mark_line(**STROKES[field], **dot)
        .encode(x=across(count), y=scale.upright(field))
    )
    return layer


def _names(last: Mapping[str, Any], scale: Scale) -> list[alt.Chart]:
    """The names of the lines, right of their ends, moved apart where they would overlap."""
    ends = {field: last[field] for field in NAMES if last[field] is not None}
    heights = apart([scale.height(value) for value in ends.values()])
    return [
        alt.Chart(alt.InlineData(values=[{"name": NAMES[field]}]))
        .mark_text(align="left", dx=6, fontWeight="bold", fontSize=11, color=COLOURS[field])
        .encode(
            x=alt.XDatum(last["place"]),
            y=alt.value(HEIGHT * (1 - height)),
            text=alt.Text("name:N"),
        )
        for field, height in zip(ends, heights, strict=True)
    ]


def apart(heights: list[float]) -> list[float]:
    """Return one or two heights, moved so far apart that labels at them do not overlap.

    >>> apart([0.5, 0.5]), apart([0.0, 0.02])
    ([0.55, 0.45], [0.0, 0.1])
    """
    if len(heights) < 2 or abs(heights[0] - heights[1]) >= LINE:
        return heights
    lower = min(max((sum(heights) - LINE) / 2, 0.0), 1 - LINE)
    pair = [lower, lower + LINE]
    return pair if heights[0] < heights[1] else pair[::-1]


def _worst(rows: Sequence[Row], scale: Scale, count: int) -> alt.Chart:
    """The name of the layer that parts most by itself, at its dot, where it is over the bar."""
    row = max(rows, key=lambda row: row["own"])
    over = row["bar"] is not None and row["own"] > row["bar"]
    side: dict[str, Any] = {"align": "left", "dx": 7}
    if row["place"] > count / 2:
        side = {"align": "right", "dx": -7}
    layer: alt.Chart = (
        alt.Chart(alt.InlineData(values=[row] if over else []))
        .mark_text(**side, dy=-9, fontSize=11, color=COLOURS["own"])
        .encode(x=alt.X("place:Q"), y=scale.upright("own"), text=alt.Text("layer:N"))
    )
    return layer
