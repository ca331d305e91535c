"""Of very many settings the charts show the best of each side, and the tables have all."""

import re

import pytest

from bnkit.report.comparison_page import charts, page
from bnkit.report.curve_charts import metric_chart
from bnkit.report.selection import MOST, left_out, shown_settings
from bnkit.report.step_charts import steps_chart
from bnkit.report.summary_picture import summary_picture
from report.fabricate import comparison, never_run, three_sides

RATES = [0.01 * 1.5**n for n in range(10)]
NETS = [f"width={8 * n}" for n in range(1, 6)]
MANY = comparison(RATES, NETS, 2)  # 50 settings


def test_few_settings_are_all_shown_and_none_is_said_to_be_missing():
    found = comparison(RATES[:6], NETS[:4], 1)
    assert len(shown_settings(found)) == MOST == 24
    assert left_out(found) == ()


@pytest.mark.parametrize("found", [MANY, three_sides(MANY)], ids=["two sides", "three sides"])
def test_of_many_the_best_of_each_side_are_shown_in_the_order_of_the_sweep(found):
    shown = shown_settings(found)
    assert len(shown) <= MOST
    cells = [(cell.learning_rate, cell.activation) for cell in found.cells]
    assert sorted(shown, key=cells.index) == list(shown)
    share = MOST // len(found.sides)
    assert {*shown} == {
        (cell.learning_rate, cell.activation)
        for side in found.sides
        for cell in found.ranked(side)[:share]
    }
    assert all(found.ranked(side)[0] == found.best(side) for side in found.sides)


def test_where_nothing_ran_there_is_a_panel():
    found = comparison(RATES, NETS, 1, change=never_run)
    assert shown_settings(found) == ((RATES[0], NETS[0]),)
    assert len(summary_picture(found, metric_chart(found), "")["vconcat"]) == 2


def test_the_panels_stand_side_by_side_with_their_settings_and_the_caption_counts_them():
    chart = metric_chart(MANY)
    assert len(chart.groups) == 1
    assert chart.groups[0].columns == 4
    assert [panel.drawing.title.text for panel in chart.panels] == [
        activation for _, activation in shown_settings(MANY)
    ]
    assert all(panel.drawing.title.subtitle[0].startswith("learning") for panel in chart.panels)
    assert f"Drawn are {len(chart.panels)} of the 50 settings" in chart.caption[-1]


def test_of_many_seeds_the_first_are_drawn_step_by_step():
    chart = steps_chart(comparison((0.1, 1.0), ("relu",), 25))
    assert "The first 20 of 25 seeds." in chart.caption
    seeds = {row["seed"] for panel in chart.panels for row in panel.data.values}
    assert seeds == set(range(20))


def test_the_tables_of_many_settings_are_closed_at_first_and_whole():
    html = page(MANY, charts(MANY))
    assert len(re.findall(r"<details><summary>50 settings</summary>", html)) == 2
    assert all(f">{net}</th>" in html for net in NETS)
    assert html.count("<details") == html.count("</details>")
    assert "<details><summary>8 settings" not in page(comparison(), charts(comparison()))
