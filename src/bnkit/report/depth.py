"""Depth: what the charts share that show batch norms in the order in which they run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt

from bnkit.diagnosis.layer_records import LayerRecord
from bnkit.report.palette import PAGE
from bnkit.report.panels import HEIGHT, NEAREST, ROW, at

Row = dict[str, Any]


def name_of(layer: LayerRecord) -> str:
    """Return the layer's path, with its domain.

    >>> name_of(LayerRecord("net.bn", "DomainBatchNorm2d", domain="night"))
    'net.bn (night)'
    """
    return f"{layer.layer or '(the model)'}{f' ({layer.domain})' if layer.domain else ''}"


def placed(layers: Sequence[LayerRecord]) -> Iterator[tuple[Row, LayerRecord]]:
    """Yield each layer with the beginning of its row of data: its place and its name."""
    for place, layer in enumerate(layers, start=1):
        yield {"place": place, "layer": name_of(layer)}, layer


def across(count: int) -> alt.X:
    """Return the horizontal axis: the places of so many layers."""
    ticks = sorted({1, (count + 1) // 2, count})
    axis = alt.Axis(
        **at(ticks), format="d", title="number of the batch norm, in the order in which they run"
    )
    return alt.X("place:Q", axis=axis, scale=alt.Scale(domain=[0.5, count + 0.5], nice=False))


def drawing(marks: Sequence[Any], unit: str) -> alt.LayerChart:
    """Return the marks over each other, with the unit of the vertical axis above it."""
    chart = alt.LayerChart(layer=list(marks))
    title = alt.Title(unit, fontSize=11, fontWeight="normal", color=PAGE.muted)
    titled: alt.LayerChart = chart.properties(height=HEIGHT, title=title)
    return titled


def hover(rows: Sequence[Row], readings: Mapping[str, str]) -> alt.Chart:
    """Return a rule at the nearest layer, with its name and, by their titles, fields of its row."""
    nearest = alt.selection_point(
        NEAREST, fields=["place"], nearest=True, on="pointerover", clear="pointerout"
    )
    texts = ", ".join(
        f"'{title}': isValid({ROW}.{field}) ? format({ROW}.{field}, '.3~g') : '–'"
        for title, field in readings.items()
    )
    layer: alt.Chart = (
        alt.Chart(alt.InlineData(values=list(rows)))
        .mark_rule(color=PAGE.muted)
        .encode(
            x=alt.X("place:Q"),
            opacity=alt.when(nearest, empty=False).then(alt.value(0.6)).otherwise(alt.value(0)),
            tooltip=alt.TooltipValue(alt.ExprRef(f"{{'layer': {ROW}.layer, {texts}}}")),
        )
        .add_params(nearest)
    )
    return layer


def thickness(layers: Sequence[LayerRecord]) -> float:
    """Return how many pixels a layer's bar is wide, where the chart is as narrow as on a phone."""
    return min(9.0, max(1.5, 130 / len(layers)))


def in_words(rows: Sequence[Row], fields: Sequence[str]) -> str:
    """Return fields of the rows for those who cannot see: of the ends only, where rows are many.

    >>> in_words([{"layer": "bn", "own": 0.5, "bar": None}], ["own", "bar"])
    'bn 0.5, unknown'
    """
    shown = rows if len(rows) <= 8 else [rows[0], rows[-1]]
    return "; ".join(
        f"{row['layer']} {', '.join(_written(row[f]) for f in fields)}" for row in shown
    )


def _written(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
