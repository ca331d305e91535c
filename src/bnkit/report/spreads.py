"""Spreads: how numbers of the channels are distributed in each batch norm, through the depth."""

from collections.abc import Sequence
from dataclasses import asdict

import altair as alt

from bnkit.diagnosis.layer_records import LayerRecord
from bnkit.report.depth import Row, across, drawing, hover, in_words, placed, thickness
from bnkit.report.figure import Panel
from bnkit.report.palette import PAGE
from bnkit.report.panels import at
from bnkit.report.scales import Scale, around_one, around_zero


def means_panel(layers: Sequence[LayerRecord]) -> Panel | None:
    """Return batch means against running means, None where they are not known."""
    rows = _spreads(layers, "mean_shift")
    scale = around_zero([*_ends(rows), -0.5], 1.0, least=0.5)
    unit = "batch mean − running mean, in running std"
    return _panel("means", unit, rows, scale, layers, 0)


def variances_panel(layers: Sequence[LayerRecord]) -> Panel | None:
    """Return batch variances over running variances, None where they are not known."""
    rows = [row for row in _spreads(layers, "variance_ratio") if row["lowest"] > 0]
    unit = "batch variance / running variance, logarithmic"
    return _panel("variances", unit, rows, around_one(_ends(rows)), layers, 1)


def gammas_panel(layers: Sequence[LayerRecord]) -> Panel | None:
    """Return how γ is distributed in each layer, None where there is none."""
    rows = _spreads(layers, "gamma")
    return _panel("gammas", "γ", rows, around_zero(_ends(rows), 1.0, least=1.0), layers, 0)


def dead_panel(layers: Sequence[LayerRecord]) -> Panel | None:
    """Return the shares of channels that carry nothing, None where there is no such channel."""
    rows = [
        row | {"dead": _percent(layer.dead, layer), "collapsed": _percent(layer.collapsed, layer)}
        for row, layer in placed(layers)
    ]
    peak = max((row[field] or 0 for row in rows for field in ("dead", "collapsed")), default=0)
    if not peak:
        return None
    high = 10 * -(-peak // 10)
    label = "format(datum.value, '~g')"  # as a format it would be rounded to fit the steps
    axis = alt.Axis(**at([0, high / 2, high]), labelExpr=label, grid=True, title=None)
    upright, data = alt.Scale(domain=[0, high], nice=False), alt.InlineData(values=rows)
    bars = (
        alt.Chart(data)
        .mark_bar(color=PAGE.batch_norm, width=thickness(layers))
        .encode(x=across(len(layers)), y=alt.Y("dead:Q", scale=upright, axis=axis))
    )
    diamonds = (
        alt.Chart(data)
        .transform_filter("datum.collapsed > 0")
        .mark_point(color=PAGE.plain, shape="diamond", size=45, strokeWidth=2, opacity=1)
        .encode(x=alt.X("place:Q"), y=alt.Y("collapsed:Q", scale=upright, axis=axis))
    )
    return Panel(
        name="dead",
        words="Percentage of channels with γ near 0, and with an input that hardly varies: "
        f"{in_words(rows, ('dead', 'collapsed'))}.",
        drawing=drawing([bars, diamonds], "channels (%)"),
        hovering=hover(rows, {"γ near 0 (%)": "dead", "input hardly varies (%)": "collapsed"}),
    )


def _panel(
    name: str, unit: str, rows: list[Row], scale: Scale, layers: Sequence[LayerRecord], still: float
) -> Panel | None:
    """Return a bar for each layer, and a line at the value of a channel with which all is well."""
    if not rows:
        return None
    data, width = alt.InlineData(values=rows), thickness(layers)
    level = alt.Chart(alt.InlineData(values=[{}])).mark_rule(opacity=0.7)
    bars = [
        alt.Chart(data)
        .mark_rule(color=PAGE.batch_norm, strokeWidth=stroke, opacity=opacity)
        .encode(x=across(len(layers)), y=scale.upright(low), y2=alt.Y2(high))
        for low, high, stroke, opacity in (
            ("lowest", "highest", 1, 0.8),
            ("p15", "p85", width, 0.5),
        )
    ]
    median = (
        alt.Chart(data)
        .mark_point(color=PAGE.ink, filled=True, size=8 + 3 * width, opacity=1)
        .encode(x=alt.X("place:Q"), y=scale.upright("median"))
    )
    readings = {
        "highest": "highest",
        "85th percentile": "p85",
        "median": "median",
        "15th percentile": "p15",
        "lowest": "lowest",
    }
    return Panel(
        name=name,
        words=f"{unit}, the median over the channels: {in_words(rows, ('median',))}.",
        drawing=drawing([level.encode(y=alt.YDatum(still)), *bars, median], unit),
        hovering=hover(rows, readings),
    )


def _spreads(layers: Sequence[LayerRecord], field: str) -> list[Row]:
    found = ((row, getattr(layer, field)) for row, layer in placed(layers))
    return [row | asdict(spread) for row, spread in found if spread is not None]


def _ends(rows: Sequence[Row]) -> list[float]:
    return [row[end] for row in rows for end in ("lowest", "highest")]


def _percent(count: int | None, layer: LayerRecord) -> float | None:
    return None if count is None or not layer.channels else 100 * count / layer.channels
