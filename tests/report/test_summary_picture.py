"""One picture holds the verdict, the key figures, and the curves nearest to the best setting."""

from textwrap import wrap

import altair as alt
import pytest

from bnkit.report.charts import export
from bnkit.report.curve_charts import metric_chart
from bnkit.report.summary_picture import CHARACTERS, summary_picture
from report.fabricate import comparison, never_run

MANY = comparison([0.001, 0.003, 0.01, 0.03, 0.1, 0.3], ["sigmoid", "relu"], 1)


def picture(found):
    return summary_picture(found, metric_chart(found), "mlp on digits")


def titles(found):
    """The titles of the panels that are shown."""
    return [panel["title"]["text"] for panel in picture(found)["vconcat"][1]["concat"]]


def test_verdict_subject_key_figures_and_curves_are_in_it():
    found = comparison()
    svg = export(picture(found))[".svg"].decode()
    lines = [line for sentence in found.verdict.sentences for line in wrap(sentence, CHARACTERS)]
    for words in (*lines, "bnkit compare: mlp on digits", "24/24", "97.0%"):
        assert f">{words}<" in svg
    assert "learning rate 3" in svg


def test_of_many_settings_the_four_nearest_to_the_best_are_shown():
    best = MANY.best("batch norm")
    assert len(titles(MANY)) == 4
    assert f"learning rate {best.learning_rate:g}" in titles(MANY)
    assert picture(MANY)["vconcat"][1]["title"]["text"] == best.activation


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(comparison([0.1], ["as built"], 1), id="one setting"),
        pytest.param(comparison([0.1], ["sigmoid", "relu"], 1), id="one rate"),
        pytest.param(comparison(change=never_run), id="nothing ran"),
    ],
)
def test_the_specification_is_valid_for_any_comparison(found):
    alt.Chart.from_dict(picture(found))  # raises where the grammar is broken
    assert 1 <= len(titles(found)) <= 4
