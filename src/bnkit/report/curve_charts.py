"""The charts of metric and loss while training: a panel for each setting, both sides in it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import altair as alt

from bnkit.experiments.results import Side
from bnkit.experiments.summary import Comparison
from bnkit.report.charts import ONCE, Chart, Group, Panel, end_names, hover, layer
from bnkit.report.curves import Curves, Measure, Spread, curves_of
from bnkit.report.formatting import after_comma, heading, number, short_name
from bnkit.report.palette import fields_of, side_colours, stroke_of
from bnkit.report.scales import Scale, powers
from bnkit.report.selection import Setting, left_out, shown_settings
from bnkit.tables import several

CROSS = {"shape": "M-1,-1L1,1M-1,1L1,-1", "size": 28, "strokeWidth": 2, "opacity": 1}
ROOM = 112  # pixels between two panels: the names of the lines, then the labels of the axis
DECADES = 6  # below this many powers of ten under its top, a loss is as good as zero
AT_VALUE = {"x": "step:Q", "color": "side:N"}  # of layers whose rows are a value of a side each


@dataclass(frozen=True)
class Quantity:
    """What the curves of a chart show, on which scale, and how a value is written.

    `text` is a format for both Python and the drawing language, followed by `unit`.
    """

    name: str
    label: str
    scale: Scale
    text: str
    unit: str = ""
    target: float | None = None

    def written(self, value: float) -> str:
        """Return the value as it is written, with its unit."""
        return f"{value:{self.text}}{self.unit}"


def metric_chart(comparison: Comparison) -> Chart:
    """Return the curves of the held-out metric, with a thin rule for the target."""
    metric, times = comparison.metric, 100 if comparison.metric.percent else 1
    curves = _curves(
        comparison, lambda curve: [v if v is None else times * v for v in curve.metric]
    )
    known = math.isfinite(comparison.target)  # the first side's own best may not be
    target = times * comparison.target if known else 0.0
    if metric.percent:
        scale, text, unit = percent_scale(curves.values(), target), ".1f", "%"
    else:
        scale, text, unit = plain_scale(curves.values(), target), ".3g", ""
    label = f"held-out {metric.name}" + (" (%)" if metric.percent else "")
    shown = Quantity("metric", label, scale, text, unit, target if known else None)
    rule = f"Thin rule: the target, {comparison.goal}."
    title = f"Held-out {metric.name} while training"
    return _chart(comparison, title, curves, shown, (rule,) if known else ())


def loss_chart(comparison: Comparison) -> Chart:
    """Return the curves of the training loss."""
    curves = _curves(comparison, lambda curve: curve.loss)
    shown = Quantity("loss", "training loss (log scale)", loss_scale(curves.values()), ".2g")
    highest = [spread.highest for each in curves.values() for spread in each.everything]
    above = f"Losses above {shown.written(shown.scale.high)} are drawn at the upper edge."
    notes = (above,) if max(highest, default=0) > shown.scale.high else ()
    return _chart(comparison, "Training loss", curves, shown, notes)


def percent_scale(curves: Iterable[Curves], target: float) -> Scale:
    """Return the scale of shares in percent: from 0 to 100, or to the next ten below 50."""
    highest = max([target, *(spread.highest for each in curves for spread in each.everything)])
    high = 100 if highest > 50 else max(10, 10 * math.ceil(highest / 10))
    ticks = tuple(float(tick) for tick in range(0, high + 1, 25 if high == 100 else 10))
    return Scale(0, high, ticks)


def plain_scale(curves: Iterable[Curves], target: float) -> Scale:
    """Return the linear scale of any metric: it holds the target and what most runs show.

    Its ends lie at most 10 times the distance of the median from the target away from the target:
    a run that diverges would press everything else flat.
    """
    spreads = [spread for each in curves for spread in each.everything]
    away = 10 * abs(median(s.median for s in spreads) - target) if spreads else 1.0
    low = max(target - away, min([target, *(s.lowest for s in spreads)]))
    high = min(target + away, max([target, *(s.highest for s in spreads)]))
    room = 0.05 * (high - low) or 1.0
    return Scale(low - room, high + room)


def loss_scale(curves: Iterable[Curves]) -> Scale:
    """Return the scale of losses: logarithmic, six decades at most, its top below explosions.

    The top is at most 10 times the median of the first losses: the loss of a run that diverges
    passes all bounds, and would press everything else flat.
    """
    curves = list(curves)
    first = [side[0].median for each in curves for side in each.spreads.values() if side]
    values = [v for each in curves for s in each.everything for v in (s.lowest, s.highest)]
    positive = [value for value in values if value > 0] or [1.0]
    # A first loss of 0 bounds nothing: `or` takes the largest value then.
    high = 1.1 * min(max(positive), 10 * (median(first) if first else math.inf) or math.inf)
    low = max(min(positive), high * 10**-DECADES) / 1.1
    return Scale(low, high, powers(low, high, most=4), "log")


def _curves(comparison: Comparison, measure: Measure) -> dict[Setting, Curves]:
    return {
        (lr, activation): curves_of(
            {side: comparison.at(lr, activation, side) for side in comparison.sides}, measure
        )
        for lr, activation in shown_settings(comparison)
    }


def _chart(
    comparison: Comparison,
    title: str,
    curves: Mapping[Setting, Curves],
    shown: Quantity,
    notes: tuple[str, ...],
) -> Chart:
    seeds = len(comparison.seeds)
    lines = "one run" if seeds == 1 else f"median of {seeds} seeds, band: lowest to highest"
    caption = [f"{_legend(comparison.sides)} Line: {lines}."]
    if diverged := sum(trial.outcome == "diverged" for trial in comparison.trials):
        caption.append(
            f"×: a run diverged there ({diverged} did); it counts with its last value from there "
            "on."
        )
    return Chart(
        name=shown.name,
        title=f"{title}: {_against(comparison.sides)}",
        caption=(*caption, *notes, *left_out(comparison)),
        groups=tuple(_groups(comparison, curves, shown)),
        width=190,
        room=ROOM,
    )


LINES = ("Dashed", "Solid", "Dotted", "Dash-dotted", "Thin", "Thin and dashed")  # as STROKES


def _legend(sides: Sequence[Side]) -> str:
    named = [f"{LINES[n % len(LINES)]}: {_with_short_name(side)}." for n, side in enumerate(sides)]
    return " ".join(named)


def _against(sides: Sequence[Side]) -> str:
    first, *others = map(_with_short_name, sides)
    return f"{first} against {', '.join(others)}"


def _with_short_name(side: Side) -> str:
    return side if short_name(side) == side else f"{side} ({short_name(side)})"


def _groups(
    comparison: Comparison, curves: Mapping[Setting, Curves], shown: Quantity
) -> Iterable[Group]:
    """A group for each activation, its panels by learning rate; one where it has one panel each."""
    last_step = max((t.curve.steps[-1] for t in comparison.trials if t.curve.steps), default=1)

    def panel(setting: Setting, title: str, *more: str) -> Panel:
        return Panel(
            name=f"{shown.name}-{list(curves).index(setting)}",
            description=_in_words(setting, curves[setting], shown),
            layers=_layers(curves[setting], shown, last_step),
            title=alt.Title(title, subtitle=[*more, shown.label] if more else shown.label),
            data=_table(curves[setting]),
            colour=side_colours(comparison.sides),
            width=300,
            hover=hover("step", list(_readings(curves[setting], shown))),
        )

    rated = {setting: f"learning rate {number(setting[0])}" for setting in curves}
    activations = list(dict.fromkeys(activation for _, activation in curves))
    if len(comparison.learning_rates) == 1 and len(activations) > 1:
        yield Group("", tuple(panel(setting, setting[1]) for setting in curves))
        return
    if left_out(comparison) and len(activations) > 1:
        yield Group("", tuple(panel(setting, setting[1], rated[setting]) for setting in curves))
        return
    for activation in activations:
        settings = [setting for setting in curves if setting[1] == activation]
        panels = tuple(panel(each, rated[each]) for each in settings)
        yield Group(heading(activation), panels)


def _readings(curves: Curves, shown: Quantity) -> Iterable[dict[str, Any]]:
    """What the pointer reads at each step: of each side the median and, in brackets, the range."""
    found: dict[int, list[str]] = {}
    for side, spreads in curves.spreads.items():
        for each in spreads:
            middle, low, high = map(shown.written, (each.median, each.lowest, each.highest))
            around = f" ({low} to {high})" if low != high else ""
            found.setdefault(each.step, []).append(f"{side} {middle}{around}")
    for step in sorted(found):
        yield {"step": step, "reading": "\n".join([f"step {step:,}", *found[step]])}


def _in_words(setting: Setting, curves: Curves, shown: Quantity) -> str:
    learning_rate, activation = setting
    ends = [
        f"{side} {shown.written(end.median) if (end := curves.end(side)) else 'nothing to show'}"
        for side in curves.spreads
    ]
    diverged = len(curves.divergences)
    crosses = f"; {several(diverged, 'run')} diverged" if diverged else ""
    return (
        f"{shown.label} against training step, learning rate {number(learning_rate)}"
        f"{after_comma(activation)}. At the end: {', '.join(ends)}{crosses}."
    )


def _table(curves: Curves) -> alt.InlineData:
    """One row a step with three values of each side, as text: a page may hold 200 of these."""
    fields = fields_of([*curves.spreads]).values()
    columns = ["step", *(f"{field}{end}" for field in fields for end in ("", "_low", "_high"))]
    spreads = [{s.step: s for s in of_side} for of_side in curves.spreads.values()]
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


def _layers(curves: Curves, shown: Quantity, last_step: int) -> list[alt.Chart]:
    """Bands, the target, medians, diverged runs, and names; the bands bring the axes of all."""
    sides = [*curves.spreads]
    fields, steps = fields_of(sides), Scale(0, last_step, (0, last_step // 2, last_step))
    across = steps.x("step", format=",d", labelFlush=True, title="training step")
    bands = [
        layer(
            "area",
            None,
            {"opacity": 0.2},
            x=across,
            y=shown.scale.y(f"{field}_low"),
            y2=f"{field}_high",
            color=alt.ColorDatum(side),
        )
        for side, field in fields.items()
    ]
    target = layer("rule", ONCE, {"opacity": 0.7}, y=alt.YDatum(shown.target))
    medians = [
        layer(
            "line",
            None,
            stroke_of(side, sides),
            x="step:Q",
            y=f"{field}:Q",
            color=alt.ColorDatum(side),
        )
        for side, field in fields.items()
    ]
    ends = [
        _at(end.step, end.median, side)
        | {"name": f"{short_name(side)} {shown.written(end.median)}"}
        for side in curves.spreads
        if (end := curves.end(side))
    ]
    return [
        *bands,
        *([] if shown.target is None else [target]),
        *medians,
        _crosses(curves, shown.scale),
        end_names(ends, shown.scale, "value", **AT_VALUE),
        _absences(curves, shown.scale, last_step / 2),
    ]


def _crosses(curves: Curves, scale: Scale) -> alt.Chart:
    """A cross where a run diverged, far enough inside that it does not stick out at the top."""
    rows = [
        _at(each.step, scale.value(min(scale.height(each.value), 0.96)), each.side)
        for each in curves.divergences
    ]
    return layer("point", rows, CROSS, y="value:Q", **AT_VALUE)


def _absences(curves: Curves, scale: Scale, middle: float) -> alt.Chart:
    """A side without a curve says so, in the middle, between two lines of the grid."""
    rows = [
        _at(middle, scale.value(max(0.1, 0.62 - 0.25 * n)), side)
        | {"name": f"{side}: nothing to show"}
        for n, side in enumerate(curves.spreads)
        if curves.end(side) is None
    ]
    return layer("text", rows, {"fontSize": 11}, y="value:Q", text="name:N", **AT_VALUE)


def _at(step: float, value: float, side: Side) -> dict[str, Any]:
    return {"step": step, "value": value, "side": side}
