"""Charts have one panel for each setting, say how to read them, and keep to the grammar."""

import altair as alt
import pytest
import vl_convert

from bnkit.report.chart_engine import VEGA_LITE
from bnkit.report.comparison_page import charts
from bnkit.report.curve_charts import loss_chart, metric_chart
from bnkit.report.step_charts import steps_chart
from report.fabricate import comparison, never_run

SMALL = comparison([0.1, 3.0], ["relu"], 2)  # plain networks diverge at 3


def test_there_is_a_panel_for_each_learning_rate_and_activation_grouped_by_activation():
    chart = metric_chart(comparison([0.1, 1.0, 3.0], ["sigmoid", "relu"], 1))
    assert [(g.heading, len(g.panels)) for g in chart.groups] == [("sigmoid", 3), ("relu", 3)]


def test_with_one_learning_rate_the_activations_stand_side_by_side():
    chart = metric_chart(comparison([0.1], ["sigmoid", "tanh", "relu"], 1))
    assert [(g.heading, len(g.panels)) for g in chart.groups] == [("", 3)]
    assert [panel.drawing.title.text for panel in chart.panels] == ["sigmoid", "tanh", "relu"]


@pytest.mark.parametrize("activation", ["", "as built"])
def test_a_model_with_activations_of_its_own_has_no_heading(activation):
    assert [g.heading for g in loss_chart(comparison([0.1, 1.0], [activation], 1)).groups] == [""]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (5, 3), (6, 3), (7, 4), (8, 4)])
def test_rows_are_of_four_at_most_and_evenly_filled(count, columns):
    rates = [0.1 * (n + 1) for n in range(count)]
    assert metric_chart(comparison(rates, ["relu"], 1)).groups[0].columns == columns


def test_divergence_is_explained_only_where_there_is_any():
    assert any("diverged" in line for line in metric_chart(SMALL).caption)
    calm = metric_chart(comparison([0.1], ["relu"], 2))
    assert not any("diverged" in line for line in calm.caption)


def test_one_seed_is_not_called_a_median():
    assert "median" not in " ".join(metric_chart(comparison([0.1], ["relu"], 1)).caption)


def test_losses_beyond_the_scale_are_announced():
    explodes = loss_chart(comparison([0.1, 3.0], ["relu"], 8))
    assert any("upper edge" in line for line in explodes.caption)
    assert not any("upper edge" in line for line in loss_chart(comparison([0.1])).caption)


def test_a_panel_says_in_words_what_it_shows():
    words = metric_chart(SMALL).panels[1].description
    assert "learning rate 3, relu" in words
    assert "2 runs diverged" in words
    assert "batch norm 9" in words  # ninety-odd percent
    empty = metric_chart(comparison([0.1], ["relu"], 1, change=never_run))
    assert "plain nothing to show, batch norm nothing to show" in empty.panels[0].description


def test_names_of_panels_are_unique():
    names = [panel.name for chart in charts(SMALL) for panel in chart.panels]
    assert len(set(names)) == len(names) == 5


def valid(specification):
    return alt.Chart.from_dict(specification)  # raises where the grammar is broken


@pytest.mark.parametrize("make", [metric_chart, loss_chart, steps_chart])
def test_specifications_are_valid_and_compile_for_page_and_sheet(make):
    chart = make(SMALL)
    for specification in (chart.on_sheet, chart.panels[-1].on_page):
        valid(specification)
        vl_convert.vegalite_to_vega(specification, vl_version=VEGA_LITE)
