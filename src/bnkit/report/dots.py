"""Dots: how many steps each pair of runs took to the target, one row of dots a pair."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import altair as alt

from bnkit.lab.records import SIDES, Side, TrialResult
from bnkit.lab.summary import Comparison
from bnkit.report.frames import powers
from bnkit.report.panels import FIELD, SIDE_COLOURS
from bnkit.report.words import number

# Shape and filling tell the sides apart without colour: a ring may lie around a dot.
MARK: dict[Side, dict[str, Any]] = {
    "plain": {"size": 90, "filled": False, "strokeWidth": 2},
    "batch norm": {"size": 45, "filled": True},
}
ROOM_OF_A_SEED, ROOM_OF_A_SETTING = 9, 14  # pixels


@dataclass(frozen=True)
class Track:
    """The axis of steps, logarithmic; `never` lies right of its last step."""

    first: float
    last: float

    @property
    def never(self) -> float:
        """Where a run stands that never reaches the target: an eighth of the axis further."""
        return float(self.last * (self.last / self.first) ** 0.125)

    @property
    def end(self) -> float:
        """The right end of the axis."""
        return float(self.never * (self.last / self.first) ** 0.04)

    @property
    def axis(self) -> alt.X:
        """The axis as it is drawn."""
        ticks = [*powers(self.first, self.last, most=5), self.never]
        label = f"datum.value > {self.last} ? 'never' : format(datum.value, ',d')"
        axis = alt.Axis(values=ticks, labelExpr=label, title="training steps to the target")
        domain = [self.first, self.end]
        return alt.X(type="quantitative").scale(type="log", domain=domain, nice=False).axis(axis)


def track(comparison: Comparison) -> Track:
    """Return the axis on which every run of the comparison has its place."""
    reached = [s for t in comparison.trials if (s := t.curve.first_step_at(comparison.target))]
    last = max((t.curve.steps[-1] for t in comparison.trials if t.curve.steps), default=10)
    return Track(0.9 * min(reached, default=last / 10), last)


def dots(comparison: Comparison, activation: str, track: Track, title: str) -> alt.LayerChart:
    """Return the drawing of one activation: each pair's ring and dot, joined by a line."""
    rows = list(_rows(comparison, activation, track))
    room = ROOM_OF_A_SEED * len(comparison.seeds) + ROOM_OF_A_SETTING
    return (
        alt.layer(_edge(track), _joins(), *(_points(side) for side in SIDES))
        .properties(
            data=alt.InlineData(values=rows),
            height=alt.Step(room, **{"for": "position"}),
            title=alt.Title(title, subtitle="learning rate"),
        )
        .encode(x=track.axis, y=_settings(comparison), yOffset=alt.YOffset("seed:O"), color=SIDE_COLOURS)
    )


def _rows(comparison: Comparison, activation: str, track: Track) -> Iterable[dict[str, Any]]:
    pairs: dict[tuple[float, int], dict[Side, TrialResult]] = {}
    for trial in comparison.trials:
        if trial.activation == activation and trial.outcome != "not run":
            pairs.setdefault((trial.learning_rate, trial.seed), {})[trial.side] = trial
    for (learning_rate, seed), pair in pairs.items():
        row = {"learning rate": number(learning_rate), "seed": seed}
        for side, trial in pair.items():
            step = trial.curve.first_step_at(comparison.target)
            row[FIELD[side]] = track.never if step is None else step
            row[f"{FIELD[side]}_reading"] = "never" if step is None else f"{step:,}"
        yield row


def _settings(comparison: Comparison) -> alt.Y:
    order = [number(learning_rate) for learning_rate in comparison.learning_rates]
    axis = alt.Axis(title=None, grid=True, tickBand="extent")
    return alt.Y("learning rate:N").scale(domain=order).axis(axis)


def _edge(track: Track) -> alt.Chart:
    between = (track.last * track.never) ** 0.5
    rule = alt.Chart(alt.InlineData(values=[{}])).mark_rule(strokeDash=[2, 2])
    return rule.encode(
        x=alt.XDatum(between), y=alt.value(0), y2=alt.value("height"), yOffset=alt.value(0)
    )


def _joins() -> alt.Chart:
    both = f"isValid(datum.{FIELD['plain']}) && isValid(datum.{FIELD['batch norm']})"
    rule = alt.Chart().transform_filter(both).mark_rule(strokeWidth=1.5, opacity=0.6)
    return rule.encode(x=f"{FIELD['plain']}:Q", x2=f"{FIELD['batch norm']}:Q")


def _points(side: Side) -> alt.Chart:
    readings = [
        alt.Tooltip(f"{FIELD[each]}_reading:N", title=f"{each}, steps to the target")
        for each in SIDES
    ]
    place = [alt.Tooltip("learning rate:N"), alt.Tooltip("seed:O")]
    points = alt.Chart().transform_filter(f"isValid(datum.{FIELD[side]})").mark_point(**MARK[side])
    return points.encode(
        x=f"{FIELD[side]}:Q",
        color=alt.datum(side),
        opacity=alt.value(1),
        tooltip=[*place, *readings],
    )
