import json

import pytest

from bnkit.report.charts import export
from bnkit_claims.core.charts import (
    Axis,
    Dot,
    Dots,
    Line,
    Lines,
    Picture,
    Pictures,
    Rule,
    Surface,
    Surfaces,
)
from bnkit_claims.report.claim_charts import drawn

LINES = Lines(
    "Plain falls behind",
    Axis("training step"),
    Axis("accuracy (%)"),
    (
        Line(
            "plain", (1, 2, 3), (10.0, None, 30.0), "plain", (5.0, None, 20.0), (11.0, None, 31.0)
        ),
        Line("batch norm", (1, 2, 3), (50.0, 80.0, 90.0), "batch norm"),
        Line("ghost", (1, 2, 3), (50.0, 80.0, 90.0), panel="small batches"),
    ),
    Rule(90, "target"),
)
DOTS = Dots(
    "Ratios",
    Axis("times", logarithmic=True),
    (Dot("sigmoid", "steps", 3.0, 2.0, 5.0), Dot("relu", "steps", None)),
    Rule(1, "equal"),
)
SURFACES = Surfaces(
    "Contours",
    Axis("w1"),
    Axis("w2"),
    Axis("loss", logarithmic=True),
    (Surface("raw", (0.0, 1.0), (0.0, 2.0), ((1.0, 2.0), (3.0, 10.0))),),
)
PICTURES = Pictures("Samples", (Picture("plain", ((0.0, 1.0), (0.5, None))),))


@pytest.mark.parametrize("figure", [LINES, DOTS, SURFACES, PICTURES], ids=lambda f: f.kind)
def test_each_kind_of_chart_is_drawn_on_page_and_as_files(figure):
    found = drawn(figure, "claim-1")
    panels = [panel for group in found.groups for panel in group.panels]
    assert all(panel.description.startswith(figure.title) for panel in panels)
    assert all(json.dumps(panel.on_page, allow_nan=False) for panel in panels)
    files = export(found.on_sheet)
    assert figure.title in files[".svg"].decode()
    assert files[".png"].startswith(b"\x89PNG")


def test_lines_of_a_panel_are_drawn_together_and_named_at_their_ends():
    svg = export(drawn(LINES, "c").on_sheet)[".svg"].decode()
    assert [panel.name for panel in drawn(LINES, "c").groups[0].panels] == ["c-0", "c-1"]
    for text in ("plain", "batch norm", "ghost", "small batches", "target", "accuracy (%)"):
        assert f">{text}<" in svg


def test_a_dot_without_a_value_is_said_in_words_and_not_drawn():
    panel = drawn(DOTS, "c").groups[0].panels[0]
    assert "relu, steps: nothing" in panel.description
    assert "sigmoid, steps: 3 (2 to 5)" in panel.description


def test_sides_have_their_colours_and_others_have_their_own():
    svg = export(drawn(LINES, "c").on_sheet)[".svg"].decode()
    for colour in ("#c04e00", "#0072b2", "#00785a"):  # plain, batch norm, the first of the others
        assert colour in svg


def test_words_of_a_legend_have_the_colours_of_the_page():
    svg = drawn(SURFACES, "c").panels[0].svg
    assert ">loss</text>" in svg
    assert "#000" not in svg
