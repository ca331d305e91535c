"""Panels: the curves of both sides of one setting, drawn over each other."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from bnkit.experiments.results import SIDES, Side
from bnkit.report.curves import Curves, Spread
from bnkit.report.frames import Frame

FIELD: dict[Side, str] = {"plain": "plain", "batch norm": "batch_norm"}
NAME: dict[Side, str] = {"plain": "plain", "batch norm": "BN"}
# Width and dashes tell the sides apart without colour.
STROKE: dict[Side, dict[str, Any]] = {
    "plain": {"strokeWidth": 1.75, "strokeDash": [5, 3]},
    "batch norm": {"strokeWidth": 2.5},
}
SIDE_COLOURS = alt.Color(scale=alt.Scale(domain=list(SIDES)), legend=None)
NEAREST = "nearest"
ROW = "(datum.datum || datum)"  # the area around a rule, which the pointer meets, wraps its row
CROSS = "M-1,-1L1,1M-1,1L1,-1"
HEIGHT = 140  # pixels
ROOM = 112  # pixels between two panels: the names of the lines, then the labels of the axis


def panel(curves: Curves, frame: Frame, last_step: int, title: str) -> alt.LayerChart:
    """Return the drawing of one setting: bands, medians, their names, and diverged runs."""
    layers = [
        *(_band(side, frame, last_step) for side in SIDES),
        *([] if frame.target is None else [_target(frame.target)]),
        *(_line(side) for side in SIDES),
        _crosses(curves, frame),
        _names(curves, frame),
        _absences(curves, frame, last_step),
    ]
    drawing: alt.LayerChart = (
        alt.layer(*layers, data=_table(curves))
        .encode(color=SIDE_COLOURS)
        .properties(height=HEIGHT, title=alt.Title(title, subtitle=frame.label))
    )
    return drawing


def hover(frame: Frame) -> alt.Chart:
    """Return the layer that only the page has: a rule at the nearest step, with its values."""
    nearest = alt.selection_point(
        NEAREST, fields=["step"], nearest=True, on="pointerover", clear="pointerout"
    )
    readings = ", ".join(f"'{side}': {_reading(side, frame)}" for side in SIDES)
    found = f"{{'training step': format({ROW}.step, ',d'), {readings}}}"
    layer: alt.Chart = (
        alt.Chart()
        .mark_rule()
        .encode(
            x=alt.X("step:Q"),
            opacity=alt.when(nearest, empty=False).then(alt.value(0.6)).otherwise(alt.value(0)),
            tooltip=alt.TooltipValue(alt.ExprRef(found)),
        )
        .add_params(nearest)
    )
    return layer


def _reading(side: Side, frame: Frame) -> str:
    """An expression of the drawing library: the median and, in brackets, the range."""
    middle, low, high = (
        f"format({ROW}.{FIELD[side]}{end}, '{frame.text}') + '{frame.unit}'"
        for end in ("", "_low", "_high")
    )
    found = f"isValid({ROW}.{FIELD[side]})"
    return f"{found} ? {middle} + ' (' + {low} + ' to ' + {high} + ')' : 'nothing'"


def _table(curves: Curves) -> alt.InlineData:
    """One row a step with the six values of both sides, as text: a page may hold 200 of these."""
    columns = ["step", *(f"{FIELD[side]}{end}" for side in SIDES for end in ("", "_low", "_high"))]
    spreads = [{s.step: s for s in curves.spreads[side]} for side in SIDES]
    steps = sorted({step for side in spreads for step in side})
    rows = (",".join([str(step), *(_values(side.get(step)) for side in spreads)]) for step in steps)
    return alt.InlineData(
        values="\n".join([",".join(columns), *rows]),
        format=alt.CsvDataFormat(type="csv", parse=dict.fromkeys(columns, "number")),
    )


def _values(spread: Spread | None) -> str:
    if spread is None:
        return ",,"
    return ",".join(f"{value:.4g}" for value in (spread.median, spread.lowest, spread.highest))


def _band(side: Side, frame: Frame, last_step: int) -> alt.Chart:
    """The range over the seeds; it brings the axes, which the layers after it share."""
    layer: alt.Chart = (
        alt.Chart()
        .mark_area(opacity=0.2)
        .encode(
            x=_across(last_step),
            y=_upright(frame, f"{FIELD[side]}_low"),
            y2=alt.Y2(f"{FIELD[side]}_high"),
            color=alt.ColorDatum(side),
        )
    )
    return layer


def _across(last_step: int) -> alt.X:
    ticks = [0, last_step // 2, last_step]
    axis = alt.Axis(**at(ticks), format=",d", labelFlush=True, title="training step")
    return alt.X("step:Q", axis=axis, scale=alt.Scale(domain=[0, last_step], nice=False))


def _upright(frame: Frame, field: str) -> alt.Y:
    label = "format(datum.value, '~g')"
    axis = alt.Axis(**at(frame.ticks), labelExpr=label, grid=True, title=None)
    scale = alt.Scale(
        domain=[frame.low, frame.high],
        type="log" if frame.logarithmic else "linear",
        clamp=True,
        nice=False,
    )
    return alt.Y(f"{field}:Q", axis=axis, scale=scale)


def at(ticks: Sequence[float]) -> dict[str, Any]:
    """Return the options of an axis with exactly these ticks; without a count, some are dropped."""
    return {"values": list(ticks), "tickCount": len(ticks)}


def _line(side: Side) -> alt.Chart:
    layer: alt.Chart = (
        alt.Chart()
        .mark_line(**STROKE[side])
        .encode(x=alt.X("step:Q"), y=alt.Y(f"{FIELD[side]}:Q"), color=alt.ColorDatum(side))
    )
    return layer


def _target(target: float) -> alt.Chart:
    layer: alt.Chart = (
        alt.Chart(alt.InlineData(values=[{}])).mark_rule(opacity=0.7).encode(y=alt.YDatum(target))
    )
    return layer


def _crosses(curves: Curves, frame: Frame) -> alt.Chart:
    """A cross where a run diverged, far enough inside that it does not stand out at the top."""
    rows = [
        {
            "step": each.step,
            "value": frame.value(min(frame.height(each.value), 0.96)),
            "side": each.side,
        }
        for each in curves.divergences
    ]
    return _marks(rows, alt.Chart().mark_point(shape=CROSS, size=28, strokeWidth=2, opacity=1))


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
    mark = alt.Chart().mark_text(align="left", dx=5, fontWeight="bold", fontSize=11)
    return _marks(rows, mark.encode(text=alt.Text("name:N")))


def _absences(curves: Curves, frame: Frame, last_step: int) -> alt.Chart:
    """A side without a curve says so, in the middle, between two lines of the grid."""
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
    return _marks(rows, alt.Chart().mark_text(fontSize=11).encode(text=alt.Text("name:N")))


def _marks(rows: list[dict[str, Any]], mark: alt.Chart) -> alt.Chart:
    """The mark at each row's step and value, in the colour of its side."""
    layer: alt.Chart = mark.properties(data=alt.InlineData(values=rows)).encode(
        x=alt.X("step:Q"), y=alt.Y("value:Q"), color=alt.Color("side:N")
    )
    return layer
