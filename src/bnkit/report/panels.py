"""Panels: the curves of both sides of one setting, drawn over each other."""

from collections.abc import Iterable
from typing import Any

import altair as alt

from bnkit.lab.records import SIDES, Side
from bnkit.report.curves import Curves, Spread
from bnkit.report.frames import Frame

FIELD: dict[Side, str] = {"plain": "plain", "batch norm": "batch_norm"}
NAME: dict[Side, str] = {"plain": "plain", "batch norm": "BN"}
# Width and dashes tell the sides apart without colour.
STROKE: dict[Side, dict[str, Any]] = {
    "plain": {"strokeWidth": 1.75, "strokeDash": [5, 3]},
    "batch norm": {"strokeWidth": 2.5},
}
CROSS = "M-1,-1L1,1M-1,1L1,-1"
SIDE_COLOURS = alt.Color(scale=alt.Scale(domain=list(SIDES)), legend=None)
HEIGHT = 140  # pixels
ROOM = 112  # pixels between two panels: the names of the lines, then the labels of the axis


def panel(curves: Curves, frame: Frame, last_step: int, title: str) -> alt.LayerChart:
    """Return the drawing of one setting: bands, medians, their names, and diverged runs."""
    layers = [
        *([] if frame.target is None else [_target(frame.target)]),
        *(_band(side) for side in SIDES),
        *(_line(side) for side in SIDES),
        _crosses(curves),
        _names(curves, frame),
        _absences(curves, frame, last_step),
    ]
    return (
        alt.layer(*layers, data=alt.InlineData(values=list(_rows(curves))))
        .encode(x=_across(last_step), y=_upright(frame), color=SIDE_COLOURS)
        .properties(height=HEIGHT, title=alt.Title(title, subtitle=frame.label))
    )


def hover(frame: Frame) -> alt.LayerChart:
    """Return the layer for a panel on the page: a rule that follows the pointer, with the values."""
    nearest = alt.selection_point(
        "nearest", fields=["step"], nearest=True, on="pointerover", clear="pointerout", empty=False
    )
    chart: Any = alt.Chart().mark_rule()
    for side in SIDES:
        chart = chart.transform_calculate(**{NAME[side]: _reading(side, frame)})
    opacity = alt.when(nearest).then(alt.value(0.6)).otherwise(alt.value(0))
    readings = [alt.Tooltip(NAME[side], type="nominal", title=side) for side in SIDES]
    step = alt.Tooltip("step:Q", title="training step", format=",d")
    hovering: alt.LayerChart = chart.encode(
        x="step:Q", y=alt.value(0), y2=alt.value(HEIGHT), opacity=opacity, tooltip=[step, *readings]
    ).add_params(nearest)
    return hovering


def _reading(side: Side, frame: Frame) -> str:
    """An expression of the drawing library: the median and, in brackets, the range."""
    median, low, high = (
        f"format(datum.{FIELD[side]}{end}, '{frame.text}') + '{frame.unit}'"
        for end in ("", "_low", "_high")
    )
    return f"isValid(datum.{FIELD[side]}) ? {median} + ' (' + {low} + ' to ' + {high} + ')' : '–'"


def _across(last_step: int) -> alt.X:
    axis = alt.Axis(
        values=[0, last_step // 2, last_step], format=",d", labelFlush=True, title="training step"
    )
    return alt.X("step:Q").scale(domain=[0, last_step], nice=False).axis(axis)


def _upright(frame: Frame) -> alt.Y:
    kind = "log" if frame.logarithmic else "linear"
    scale = alt.Scale(domain=[frame.low, frame.high], type=kind, clamp=True, nice=False)
    return alt.Y(
        type="quantitative",
        scale=scale,
        axis=alt.Axis(
            values=list(frame.ticks), labelExpr="format(datum.value, '~g')", grid=True, title=None
        ),
    )


def _rows(curves: Curves) -> Iterable[dict[str, float]]:
    """One row a step, with the six values of both sides: the least to store and to look up."""
    rows: dict[int, dict[str, float]] = {}
    for side in SIDES:
        for spread in curves.spreads[side]:
            rows.setdefault(spread.step, {"step": spread.step}).update(_fields(side, spread))
    return (rows[step] for step in sorted(rows))


def _fields(side: Side, spread: Spread) -> dict[str, float]:
    field = FIELD[side]
    values = {"": spread.median, "_low": spread.lowest, "_high": spread.highest}
    return {f"{field}{name}": float(f"{value:.4g}") for name, value in values.items()}


def _target(target: float) -> alt.Chart:
    rule = alt.Chart(alt.InlineData(values=[{}])).mark_rule(opacity=0.7)
    return rule.encode(x=alt.XValue(0), x2=alt.X2Value("width"), y=alt.YDatum(target))


def _band(side: Side) -> alt.Chart:
    field = FIELD[side]
    return (
        alt.Chart()
        .mark_area(opacity=0.2)
        .encode(y=f"{field}_low:Q", y2=f"{field}_high:Q", color=alt.datum(side))
    )


def _line(side: Side) -> alt.Chart:
    return alt.Chart().mark_line(**STROKE[side]).encode(y=f"{FIELD[side]}:Q", color=alt.datum(side))


def _crosses(curves: Curves) -> alt.Chart:
    rows = [
        {"step": each.step, "value": each.value, "side": each.side} for each in curves.divergences
    ]
    mark = alt.Chart(alt.InlineData(values=rows)).mark_point(
        shape=CROSS, size=28, strokeWidth=2, opacity=1
    )
    return mark.encode(y="value:Q", color="side:N")


def _names(curves: Curves, frame: Frame) -> alt.Chart:
    """Each line's name and last median, right of its end, moved apart where they would overlap."""
    ends = {side: end for side in SIDES if (end := curves.end(side))}
    heights = frame.apart([end.median for end in ends.values()])
    rows = [
        {
            "step": end.step,
            "value": height,
            "side": side,
            "name": f"{NAME[side]} {frame.written(end.median)}",
        }
        for (side, end), height in zip(ends.items(), heights, strict=True)
    ]
    mark = alt.Chart(alt.InlineData(values=rows)).mark_text(
        align="left", dx=5, fontWeight="bold", fontSize=11
    )
    return mark.encode(y="value:Q", text="name:N", color="side:N")


def _absences(curves: Curves, frame: Frame, last_step: int) -> alt.Chart:
    """A side without a curve says so, in the middle."""
    rows = [
        {
            "step": last_step / 2,
            "value": frame.value(0.62 - 0.25 * n),
            "side": side,
            "name": f"{side}: nothing to show",
        }
        for n, side in enumerate(SIDES)
        if curves.end(side) is None
    ]
    mark = alt.Chart(alt.InlineData(values=rows)).mark_text(fontSize=11)
    return mark.encode(y="value:Q", text="name:N", color="side:N")
