"""Charts of batch norms in the order in which they run: the gap to eval mode, their channels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import altair as alt

from bnkit.diagnosis.layer_records import LayerRecord
from bnkit.report.charts import ONCE, Panel, Row, end_names, hover, layer
from bnkit.report.formatting import short
from bnkit.report.palette import PAGE, STROKE
from bnkit.report.scales import Scale, around_one, around_zero
from bnkit.tables import path_or_model

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
        for row, each in _numbered(layers)
        if each.own_difference is not None
    ]
    if not rows:
        return None
    known = [row[field] for row in rows for field in (*NAMES, "bar") if row[field] is not None]
    scale, count = around_zero(known, LINEAR, least=2 * LINEAR), len(layers)
    return Panel(
        name="gap",
        description="How far eval mode diverges from training at each batch norm, all so far and "
        f"by itself: {_in_words(rows, ('so_far', 'own'))}.",
        layers=[
            layer("tick", _with(rows, "bar"), _tick(count), x="place:Q", y=scale.y("bar")),
            *(_line(rows, field, scale, count) for field in NAMES),
            _names(rows[-1], scale),
            _worst(rows, scale, count),
        ],
        title=_unit_title("share of the size of the layer's output"),
        hover=_layer_hover(
            rows, {NAMES["so_far"]: "so_far", NAMES["own"]: "own", "threshold": "bar"}
        ),
    )


def _with(rows: Sequence[Row], field: str) -> list[Row]:
    return [row for row in rows if row[field] is not None]


def _tick(count: int) -> dict[str, Any]:
    width = _thickness(count)
    return {"orient": "horizontal", "width": width, "thickness": 1.5, "color": PAGE.muted}


def _line(rows: Sequence[Row], field: str, scale: Scale, count: int) -> Any:
    stroke = STROKES[field]
    dot = {"point": {"color": stroke["color"], "size": 22}} if len(rows) <= DOTTED else {}
    return layer(
        "line", _with(rows, field), stroke | dot, x=_layer_numbers(count), y=scale.y(field)
    )


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


def means_panel(layers: Sequence[LayerRecord]) -> Panel | None:
    """Return batch means against running means, None where they are not known."""
    rows = _spreads(layers, "mean_shift")
    scale = around_zero([*_ends(rows), -0.5], 1.0, least=0.5)
    unit = "batch mean − running mean, in running std"
    return _spread_panel("means", unit, rows, scale, len(layers), healthy=0)


def variances_panel(layers: Sequence[LayerRecord]) -> Panel | None:
    """Return batch variances over running variances, None where they are not known."""
    rows = [row for row in _spreads(layers, "variance_ratio") if row["lowest"] > 0]
    scale, unit = around_one(_ends(rows)), "batch variance / running variance, logarithmic"
    return _spread_panel("variances", unit, rows, scale, len(layers), healthy=1)


def gammas_panel(layers: Sequence[LayerRecord]) -> Panel | None:
    """Return how γ is distributed in each layer, None where there is none."""
    rows = _spreads(layers, "gamma")
    scale = around_zero(_ends(rows), 1.0, least=1.0)
    return _spread_panel("gammas", "γ", rows, scale, len(layers), healthy=0)


def dead_panel(layers: Sequence[LayerRecord]) -> Panel | None:
    """Return the shares of channels that carry nothing, None where there is no such channel."""
    rows = [
        row | {"dead": _percent(layer.dead, layer), "collapsed": _percent(layer.collapsed, layer)}
        for row, layer in _numbered(layers)
    ]
    peak = max((row[field] or 0 for row in rows for field in ("dead", "collapsed")), default=0)
    if not peak:
        return None
    high = 10 * -(-peak // 10)
    scale, across = Scale(0, high, (0, high / 2, high)), _layer_numbers(len(layers))
    bar = {"color": PAGE.batch_norm, "width": _thickness(len(layers))}
    bars = layer("bar", rows, bar, x=across, y=scale.y("dead"))
    look = {"color": PAGE.plain, "shape": "diamond", "size": 45, "strokeWidth": 2, "opacity": 1}
    collapsed = [row for row in rows if row["collapsed"]]
    diamonds = layer("point", collapsed, look, x="place:Q", y=scale.y("collapsed"))
    return Panel(
        name="dead",
        description="Percentage of channels with γ near 0, and with an input that hardly varies: "
        f"{_in_words(rows, ('dead', 'collapsed'))}.",
        layers=[bars, diamonds],
        title=_unit_title("channels (%)"),
        hover=_layer_hover(rows, {"γ near 0 (%)": "dead", "input hardly varies (%)": "collapsed"}),
    )


def _percent(count: int | None, layer: LayerRecord) -> float | None:
    return None if count is None or not layer.channels else 100 * count / layer.channels


def _spreads(layers: Sequence[LayerRecord], field: str) -> list[Row]:
    found = ((row, getattr(layer, field)) for row, layer in _numbered(layers))
    return [row | asdict(spread) for row, spread in found if spread is not None]


def _ends(rows: Sequence[Row]) -> list[float]:
    return [row[end] for row in rows for end in ("lowest", "highest")]


def _spread_panel(
    name: str, unit: str, rows: list[Row], scale: Scale, count: int, *, healthy: float
) -> Panel | None:
    """Return a bar for each layer, and a rule at the value of a `healthy` channel."""
    if not rows:
        return None
    across, width = _layer_numbers(count), _thickness(count)

    def bars(low: str, high: str, stroke: float, opacity: float) -> alt.Chart:
        look = {"color": PAGE.batch_norm, "strokeWidth": stroke, "opacity": opacity}
        return layer("rule", rows, look, x=across, y=scale.y(low), y2=high)

    dot = {"color": PAGE.ink, "filled": True, "size": 8 + 3 * width, "opacity": 1}
    readings = {"highest": "highest", "85th percentile": "p85", "median": "median",
                "15th percentile": "p15", "lowest": "lowest"}  # fmt: skip
    return Panel(
        name=name,
        description=f"{unit}, the median over the channels: {_in_words(rows, ('median',))}.",
        layers=[
            layer("rule", ONCE, {"opacity": 0.7}, y=alt.YDatum(healthy)),
            bars("lowest", "highest", 1, 0.8),
            bars("p15", "p85", width, 0.5),
            layer("point", rows, dot, x="place:Q", y=scale.y("median")),
        ],
        title=_unit_title(unit),
        hover=_layer_hover(rows, readings),
    )


def name_of(layer: LayerRecord) -> str:
    """Return the layer's path, with its domain.

    >>> name_of(LayerRecord("net.bn", "DomainBatchNorm2d", domain="night"))
    'net.bn (night)'
    """
    return f"{path_or_model(layer.layer)}{f' ({layer.domain})' if layer.domain else ''}"


def _numbered(layers: Sequence[LayerRecord]) -> Iterator[tuple[Row, LayerRecord]]:
    """Yield each layer with the beginning of its row of data: its number and its name."""
    for place, each in enumerate(layers, start=1):
        yield {"place": place, "layer": name_of(each)}, each


def _layer_numbers(count: int) -> alt.X:
    """Return the horizontal axis: the numbers of so many layers."""
    ticks = tuple(sorted({1, (count + 1) // 2, count}))
    title = "number of the batch norm, in the order in which they run"
    return Scale(0.5, count + 0.5, ticks).x("place", format="d", title=title)


def _thickness(count: int) -> float:
    """Return how many pixels a layer's bar is wide, where the chart is as narrow as on a phone."""
    return min(9.0, max(1.5, 130 / count))


def _unit_title(unit: str) -> alt.Title:
    """Return the unit of the vertical axis as the title above it."""
    return alt.Title(unit, fontSize=11, fontWeight="normal", color=PAGE.muted)


def _layer_hover(rows: Sequence[Row], fields: Mapping[str, str]) -> alt.Chart:
    """Return bands at the layers, with their names and, by their titles, fields of their rows."""
    return hover(
        "place",
        [
            {"place": row["place"], "reading": "\n".join([row["layer"], *_read(row, fields)])}
            for row in rows
        ],
    )


def _read(row: Row, fields: Mapping[str, str]) -> Iterator[str]:
    for title, field in fields.items():
        yield f"{title} {'–' if row[field] is None else short(row[field], digits=3)}"


def _in_words(rows: Sequence[Row], fields: Sequence[str]) -> str:
    """Return fields of the rows for those who cannot see: of the ends only, where rows are many.

    >>> _in_words([{"layer": "bn", "own": 0.5, "bar": None}], ["own", "bar"])
    'bn 0.5, unknown'
    """
    shown = rows if len(rows) <= 8 else [rows[0], rows[-1]]
    return "; ".join(
        f"{row['layer']} {', '.join(_written(row[f]) for f in fields)}" for row in shown
    )


def _written(value: Any) -> str:
    return "unknown" if value is None else f"{value:.3g}"
