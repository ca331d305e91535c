"""The chart of steps to the target: for each seed a mark for each side, joined by a line."""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from bnkit.experiments.results import Side, TrialResult
from bnkit.experiments.summary import Comparison
from bnkit.report.charts import ONCE, Chart, Group, Panel, layer
from bnkit.report.formatting import after_comma, heading, number
from bnkit.report.palette import fields_of, side_colours
from bnkit.report.scales import Scale, powers
from bnkit.report.selection import left_out, shown_settings

# Shape and filling tell the sides apart without colour: a ring may lie around a dot.
MARKS: tuple[dict[str, Any], ...] = (
    {"size": 90, "filled": False, "strokeWidth": 2},
    {"size": 45, "filled": True},
    {"size": 70, "filled": False, "strokeWidth": 2, "shape": "diamond"},
    {"size": 55, "filled": False, "strokeWidth": 2, "shape": "triangle-up"},
    {"size": 50, "filled": False, "strokeWidth": 2, "shape": "square"},
    {"size": 55, "filled": True, "shape": "cross"},
)
WORDS = ("Ring", "Dot", "Diamond", "Triangle", "Square", "Cross")
ROOM_OF_A_SEED, ROOM_OF_A_SETTING = 9, 14  # pixels
SEEDS = 20  # that are drawn, at most
IN_ITS_ROW = {"yOffset": "seed:O"}
# Where runs are drawn that never reach the target, and the axis ends: first to last step is 1.
NEVER, END = 1.125, 1.165


def steps_chart(comparison: Comparison) -> Chart:
    """Return the steps to the target of every pair of runs, a panel for each activation."""
    rates: dict[str, list[float]] = {}
    for learning_rate, activation in shown_settings(comparison):
        rates.setdefault(activation, []).append(learning_rate)
    scale, seeds = steps_scale(comparison), comparison.seeds[:SEEDS]
    panels = tuple(
        _panel(comparison, activation, rates[activation], seeds, scale, f"steps-{n}")
        for n, activation in enumerate(rates)
    )
    more = len(comparison.seeds) - len(seeds)
    seeds_left_out = (f"The first {len(seeds)} of {len(comparison.seeds)} seeds.",) if more else ()
    return Chart(
        name="steps",
        title=f"Training steps to {comparison.goal}",
        caption=(
            f"{_legend(comparison.sides)} A line joins the runs of one seed.",
            "“never”: the run ended or failed without reaching the target.",
            *seeds_left_out,
            *left_out(comparison),
        ),
        groups=(Group("", panels),),
        width=330,
        room=70,
    )


def steps_scale(comparison: Comparison) -> Scale:
    """Return the logarithmic scale of steps; its last tick is for runs that never get there."""
    reached = [
        s for t in comparison.trials if (s := t.steps_to(comparison.target, comparison.metric))
    ]
    last = max((t.curve.steps[-1] for t in comparison.trials if t.curve.steps), default=10)
    first = 0.9 * min(reached, default=last / 10)
    never, end = (first * (last / first) ** place for place in (NEVER, END))
    return Scale(first, end, (*powers(first, last, most=6), never), "log")


def _panel(
    comparison: Comparison,
    activation: str,
    rates: Sequence[float],
    seeds: Sequence[int],
    scale: Scale,
    name: str,
) -> Panel:
    edge = scale.value((1 + NEVER) / 2 / END)  # between the last step and "never"
    room = ROOM_OF_A_SEED * len(seeds) + ROOM_OF_A_SETTING
    rows = [row for rate in rates for row in _rows(comparison, rate, activation, seeds, scale)]
    return Panel(
        name=name,
        description=f"Steps to the target of each pair of runs{after_comma(activation)}.",
        layers=[
            _joins(rates, scale, edge),
            layer("rule", ONCE, {"strokeDash": [2, 2]}, x=alt.XDatum(edge)),
            *(_points(side, comparison.sides) for side in comparison.sides),
        ],
        title=alt.Title(heading(activation), subtitle="learning rate"),
        height=room * len(rates),
        data=alt.InlineData(values=rows),
        colour=side_colours(comparison.sides),
    )


def _rows(
    comparison: Comparison,
    learning_rate: float,
    activation: str,
    seeds: Sequence[int],
    scale: Scale,
) -> Iterable[dict[str, Any]]:
    fields, never = fields_of(comparison.sides), scale.ticks[-1]
    pairs: dict[int, dict[Side, TrialResult]] = {}
    for side in comparison.sides:
        for trial in comparison.at(learning_rate, activation, side):
            if trial.outcome != "not run" and trial.seed in seeds:
                pairs.setdefault(trial.seed, {})[side] = trial
    for seed, pair in pairs.items():
        row: dict[str, Any] = {"learning rate": number(learning_rate), "seed": seed}
        lines = [f"learning rate {number(learning_rate)}, seed {seed}"]
        for side, trial in pair.items():
            step = trial.steps_to(comparison.target, comparison.metric)
            row[fields[side]] = never if step is None else step
            lines.append(f"{side}: {'never' if step is None else f'{step:,} steps'}")
        steps = [row[fields[side]] for side in pair]
        joined = {"from": min(steps), "to": max(steps)} if len(steps) > 1 else {}
        yield {**row, **joined, "reading": "\n".join(lines)}


def _joins(rates: Sequence[float], scale: Scale, edge: float) -> Any:
    """A line between the runs of a seed; it brings the axes, which the other layers share."""
    order = [number(learning_rate) for learning_rate in rates]
    named = alt.Axis(title=None, grid=True, tickBand="extent")
    label = f"datum.value > {edge} ? 'never' : format(datum.value, ',d')"
    joins = layer(
        "rule",
        None,
        {"strokeWidth": 1.5, "opacity": 0.6},
        x=scale.x("from", labelExpr=label, title="training steps to the target"),
        x2="to",
        y=alt.Y("learning rate:N", axis=named, scale=alt.Scale(domain=order)),
        **IN_ITS_ROW,
    )
    return joins.transform_filter("isValid(datum.to)")


def _legend(sides: Sequence[Side]) -> str:
    return " ".join(f"{WORDS[n % len(WORDS)]}: {side}." for n, side in enumerate(sides))


def _points(side: Side, sides: Sequence[Side]) -> Any:
    field = fields_of(sides)[side]
    mark = MARKS[list(sides).index(side) % len(MARKS)]
    points = layer(
        "point",
        None,
        {"opacity": 1, **mark},
        x=f"{field}:Q",
        y="learning rate:N",
        color=alt.ColorDatum(side),
        description="reading:N",
        **IN_ITS_ROW,
    )
    return points.transform_filter(f"isValid(datum.{field})")
