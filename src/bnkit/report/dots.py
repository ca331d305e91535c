"""Dots: how many steps each pair of runs took to the target, one row of dots a pair."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import altair as alt

from bnkit.experiments.results import SIDES, Side, TrialResult
from bnkit.experiments.summary import Comparison
from bnkit.report.frames import powers
from bnkit.report.panels import FIELD, SIDE_COLOURS, at
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

    def axis(self, field: str) -> alt.X:
        """Return the axis as it is drawn, for a field of steps."""
        ticks = [*powers(self.first, self.last, most=6), self.never]
        label = f"datum.value > {self.last} ? 'never' : format(datum.value, ',d')"
        axis = alt.Axis(**at(ticks), labelExpr=label, title="training steps to the target")
        scale = alt.Scale(type="log", domain=[self.first, self.end], nice=False)
        return alt.X(f"{field}:Q", axis=axis, scale=scale)


def track(comparison: Comparison) -> Track:
    """Return the axis on which every run of the comparison has its place."""
    reached = [s for t in comparison.trials if (s := t.steps_to(comparison.target))]
    last = max((t.curve.steps[-1] for t in comparison.trials if t.curve.steps), default=10)
    return Track(0.9 * min(reached, default=last / 10), last)


def dots(comparison: Comparison, activation: str, track: Track, title: str) -> alt.LayerChart:
    """Return the drawing of one activation: each pair's ring and dot, joined by a line."""
    rows = list(_rows(comparison, activation, track))
    room = ROOM_OF_A_SEED * len(comparison.seeds) + ROOM_OF_A_SETTING
    drawing: alt.LayerChart = (
        alt.layer(_joins(comparison, track), _edge(track), *(_points(side) for side in SIDES))
        .properties(
            data=alt.InlineData(values=rows),
            height=room * len(comparison.learning_rates),
            title=alt.Title(title, subtitle="learning rate"),
        )
        .encode(color=SIDE_COLOURS)
    )
    return drawing


def _rows(comparison: Comparison, activation: str, track: Track) -> Iterable[dict[str, Any]]:
    pairs: dict[tuple[float, int], dict[Side, TrialResult]] = {}
    for trial in comparison.trials:
        if trial.activation == activation and trial.outcome != "not run":
            pairs.setdefault((trial.learning_rate, trial.seed), {})[trial.side] = trial
    for (learning_rate, seed), pair in pairs.items():
        row = {"learning rate": number(learning_rate), "seed": seed}
        for side, trial in pair.items():
            step = trial.steps_to(comparison.target)
            row[FIELD[side]] = track.never if step is None else step
            row[f"{FIELD[side]}_reading"] = "never" if step is None else f"{step:,}"
        yield row


def _settings(comparison: Comparison) -> alt.Y:
    order = [number(learning_rate) for learning_rate in comparison.learning_rates]
    axis = alt.Axis(title=None, grid=True, tickBand="extent")
    return alt.Y("learning rate:N", axis=axis, scale=alt.Scale(domain=order))


def _edge(track: Track) -> alt.Chart:
    """The border between the steps that were taken and "never"."""
    between = (track.last * track.never) ** 0.5
    layer: alt.Chart = (
        alt.Chart(alt.InlineData(values=[{}]))
        .mark_rule(strokeDash=[2, 2])
        .encode(x=alt.XDatum(between))
    )
    return layer


def _joins(comparison: Comparison, track: Track) -> alt.Chart:
    """A line between the two runs of a pair; it brings the axes, which the other layers share."""
    both = f"isValid(datum.{FIELD['plain']}) && isValid(datum.{FIELD['batch norm']})"
    layer: alt.Chart = (
        alt.Chart()
        .transform_filter(both)
        .mark_rule(strokeWidth=1.5, opacity=0.6)
        .encode(
            x=track.axis(FIELD["plain"]),
            x2=alt.X2(FIELD["batch norm"]),
            y=_settings(comparison),
            yOffset=alt.YOffset("seed:O"),
        )
    )
    return layer


def _points(side: Side) -> alt.Chart:
    readings = [
        alt.Tooltip(f"{FIELD[each]}_reading:N", title=f"{each}, steps to the target")
        for each in SIDES
    ]
    layer: alt.Chart = (
        alt.Chart()
        .transform_filter(f"isValid(datum.{FIELD[side]})")
        .mark_point(opacity=1, **MARK[side])
        .encode(
            x=alt.X(f"{FIELD[side]}:Q"),
            y=alt.Y("learning rate:N"),
            yOffset=alt.YOffset("seed:O"),
            color=alt.ColorDatum(side),
            tooltip=[alt.Tooltip("learning rate:N"), alt.Tooltip("seed:O"), *readings],
        )
    )
    return layer
