"""The first screen of a comparison as one picture: verdict, key figures, curves at the best."""

from collections.abc import Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any

import altair as alt

from bnkit.experiments.summary import Comparison
from bnkit.report.charts import Chart, Group, Row, layer
from bnkit.report.comparison_numbers import KeyNumber, key_numbers
from bnkit.report.formatting import short_name
from bnkit.report.palette import PAPER, fields_of
from bnkit.report.selection import shown_settings

WIDTH = 1150  # pixels, of which each panel has its share with the room beside it
PANELS = 4  # at most
CHARACTERS = 170  # of a line of reasons


def summary_picture(comparison: Comparison, curves: Chart, subject: str) -> dict[str, Any]:
    """Return the Vega-Lite specification: of the metric, the panels nearest to the best."""
    verdicts = (verdict.sentences for verdict in comparison.verdicts.values())
    (answer, *reasons), *others = verdicts
    for sentences in others:
        reasons += [" ", *sentences]  # a line apart
    reasons += [line for note in comparison.notes for line in (" ", note)]
    lines = [line for sentence in reasons for line in wrap(sentence, CHARACTERS) or [" "]]
    group = _nearest_to_the_best(comparison, curves)
    width = min(600, WIDTH // len(group.panels) - curves.room)
    title = alt.Title(
        answer,
        subtitle=[f"bnkit compare{': ' if subject else ''}{subject}", *lines],
        fontSize=26,
        subtitleFontSize=13,
        subtitlePadding=8,
        offset=24,
    )
    figures = _figures(key_numbers(comparison))
    below = replace(curves, width=width).row(group)
    sheet = alt.vconcat(figures, below, title=title, spacing=30, padding=28).configure(
        **PAPER.config
    )
    specification: dict[str, Any] = sheet.to_dict(validate=False)
    return specification


def _nearest_to_the_best(comparison: Comparison, curves: Chart) -> Group:
    plain, other, *_ = comparison.sides
    best = comparison.best(other) or comparison.best(plain)
    # The panels come in the order of the settings.
    shown = shown_settings(comparison)
    panel = curves.panels[shown.index((best.learning_rate, best.activation)) if best else 0]
    group = next(group for group in curves.groups if panel in group.panels)
    place, last = group.panels.index(panel), max(0, len(group.panels) - PANELS)
    first = min(max(0, place - PANELS // 2), last)
    return Group(group.heading, group.panels[first : first + PANELS])


def _figures(numbers: Sequence[KeyNumber]) -> Any:
    sides = [*numbers[0].values]
    fields = fields_of(sides)
    rows: list[Row] = [
        {
            "place": n,
            "name": each.name,
            **{fields[side]: each.values[side] for side in sides},
        }
        for n, each in enumerate(numbers)
    ]
    place = alt.X("place:Q", axis=None, scale=alt.Scale(domain=[0, len(rows)], nice=False))
    texts = [_text(rows, place, PAPER.ink, "name:N", 14, 0, 8)]
    colours = (PAPER.plain, PAPER.batch_norm, *PAPER.others)
    for n, (side, field) in enumerate(fields.items()):
        # Two sides lie side by side, more below each other.
        right, down = (105 * n, 0) if len(sides) == 2 else (0, 46 * n)
        label = [{"place": row["place"], "name": short_name(side)} for row in rows]
        colour = colours[n % len(colours)]
        texts.append(_text(label, place, colour, "name:N", 12, right, 32 + down))
        texts.append(_text(rows, place, colour, f"{field}:N", 22, right, 54 + down))
    height = 64 if len(sides) == 2 else 18 + 46 * len(sides)
    return alt.layer(*texts, width=WIDTH, height=height)


def _text(
    rows: Sequence[Row], place: alt.X, colour: str, field: str, size: int, right: int, down: int
) -> alt.Chart:
    look = {"align": "left", "dx": right, "fontSize": size, "color": colour,
            "fontWeight": "normal" if size == 12 else "bold"}  # fmt: skip
    return layer("text", rows, look, x=place, y=alt.value(down), text=field)
