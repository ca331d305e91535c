"""The chart of the gap: where a model in eval mode diverges from training, layer by layer."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from bnkit.diagnosis.layer_records import LayerRecord
from bnkit.report.charts import Panel, Row, end_names, layer
from bnkit.report.palette import PAGE, STROKE
from bnkit.report.per_layer import (
    in_words,
    layer_hover,
    layer_numbers,
    numbered,
    thickness,
    unit_title,
)
from bnkit.report.scales import Scale, around_zero

NAMES = {"so_far": "all so far", "own": "by itself"}
STROKES: dict[str, dict[str, Any]] = {
    "so_far": {"color": PAGE.batch_norm, **STROKE["batch norm"]},
    "own": {"color": PAGE.plain, **STROKE["plain"]},
}
LINEAR = 0.1  # up to the threshold of a difference its axis is nearly linear
DOTTED = 40  # layers up to which each has a dot on its line


def gap_panel(layers: Sequence[LayerRecord]) -> Panel | None:
    """Return how far eval mode diverges from training, None where that is known of no layer."""
    rows = [
        row | {"so_far": each.difference, "own": each.own_difference, "bar": each.tolerance}
        for row, each in numbered(layers)
        if each.own_difference is not None
    ]
    if not rows:
        return None
    known = [row[field] for row in rows for field in (*NAMES, "bar") if row[field] is not None]
    scale, count = around_zero(known, LINEAR, least=2 * LINEAR), len(layers)
    return Panel(
        name="gap",
        description="How far eval mode diverges from training at each batch norm, all so far and "
        f"by itself: {in_words(rows, ('so_far', 'own'))}.",
        layers=[
            layer("tick", _with(rows, "bar"), _tick(count), x="place:Q", y=scale.y("bar")),
            *(_line(rows, field, scale, count) for field in NAMES),
            _names(rows[-1], scale),
            _worst(rows, scale, count),
        ],
        title=unit_title("share of the size of the layer's output"),
        hover=layer_hover(
            rows, {NAMES["so_far"]: "so_far", NAMES["own"]: "own", "threshold": "bar"}
        ),
    )


def _with(rows: Sequence[Row], field: str) -> list[Row]:
    return [row for row in rows if row[field] is not None]


def _tick(count: int) -> dict[str, Any]:
    width = thickness(count)
    return {"orient": "horizontal", "width": width, "thickness": 1.5, "color": PAGE.muted}


def _line(rows: Sequence[Row], field: str, scale: Scale, count: int) -> Any:
    stroke = STROKES[field]
    dot = {"point": {"color": stroke["color"], "size": 22}} if len(rows) <= DOTTED else {}
    return layer("line", _with(rows, field), stroke | dot, x=layer_numbers(count), y=scale.y(field))


def _names(last: Row, scale: Scale) -> Any:
    # Where both end at one height, the first of these is below.
    ends = [
        {"place": last["place"], "value": last[field], "name": NAMES[field],
         "colour": STROKES[field]["color"]}
        for field in ("own", "so_far")
        if last[field] is not None
    ]  # fmt: skip
    return end_names(ends, scale, "value", x="place:Q", color=alt.Color("colour:N", scale=None))


def _worst(rows: Sequence[Row], scale: Scale, count: int) -> Any:
    """The name of the layer that diverges most by itself, at its dot, where it is over the bar."""
    row = max(rows, key=lambda row: row["own"])
    over = row["bar"] is not None and row["own"] > row["bar"]
    side = {"align": "left", "dx": 7}
    if row["place"] > count / 2:
        side = {"align": "right", "dx": -7}
    look = {**side, "dy": -9, "fontSize": 11, "color": STROKES["own"]["color"]}
    return layer("text", [row] if over else [], look, x="place:Q", y=scale.y("own"), text="layer:N")
