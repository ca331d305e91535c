"""A panel shows medians, ranges and names of both sides, and what is missing."""

import pytest

from bnkit.report.curve_charts import loss_chart, loss_scale, metric_chart, percent_scale
from bnkit.report.curves import Curves, Spread
from report.fabricate import comparison, never_finite, only_plain


def layers(chart, mark):
    """The layers with this mark of the last panel of the only group."""
    (group,) = chart.groups
    return [layer for layer in group.panels[-1].drawing.layer if layer.mark.type == mark]


def names(chart):
    return [row["name"] for layer in layers(chart, "text") for row in layer.data.values]


def test_the_table_has_a_row_for_each_evaluation_with_six_values():
    chart = metric_chart(comparison([0.1], ["relu"], 3))
    header, *rows = chart.groups[0].panels[0].drawing.data.values.splitlines()
    assert header == "step,side_0,side_0_low,side_0_high,side_1,side_1_low,side_1_high"
    assert len(rows) == 40
    for row in rows:
        _, plain, low, high, *batch_norm = map(float, row.split(","))
        assert low <= plain <= high
        assert batch_norm[1] <= batch_norm[0] <= batch_norm[2]


def test_each_line_bears_its_name_and_its_last_value():
    trials = comparison([0.1], ["relu"], 1).trials
    expected = [f"{name} {100 * trial.metric:.1f}%"
                for name, trial in zip(["plain", "BN"], trials, strict=True)]  # fmt: skip
    assert names(metric_chart(comparison([0.1], ["relu"], 1))) == expected


def test_sides_are_told_apart_without_colour():
    plain, batch_norm = layers(metric_chart(comparison([0.1], ["relu"], 1)), "line")
    assert plain.mark.strokeDash
    assert plain.mark.strokeWidth < batch_norm.mark.strokeWidth


def test_each_diverged_run_has_its_cross():
    (crosses,) = layers(metric_chart(comparison([3.0], ["relu"], 3)), "point")
    assert len(crosses.data.values) == 3


@pytest.mark.parametrize(
    ("change", "absent"),
    [
        pytest.param(only_plain, ["batch norm"], id="no run of one side"),
        pytest.param(never_finite, ["plain", "batch norm"], id="no finite loss"),
    ],
)
def test_a_side_without_a_curve_says_so(change, absent):
    chart = loss_chart(comparison([0.1], ["relu"], 1, change=change))
    assert [name for name in names(chart) if "nothing" in name] == [
        f"{side}: nothing to show" for side in absent
    ]


def curve(*values):
    return Curves({"plain": tuple(Spread(n, v, v, v) for n, v in enumerate(values)),
                   "batch norm": ()}, ())  # fmt: skip


def test_accuracies_have_a_scale_to_100_and_low_ones_on_a_smaller():
    assert percent_scale([curve(97)], 90).high == 100
    assert percent_scale([curve(12)], 15).high == 20
    assert percent_scale([], 0).high == 10


def test_a_loss_that_explodes_does_not_press_the_others_flat():
    scale = loss_scale([curve(2.3, 0.1), curve(2.3, 1e30)])
    assert scale.high < 100
    assert scale.inside(1e30) == scale.high


def test_a_loss_of_zero_or_nearly_is_drawn_at_the_lower_edge():
    scale = loss_scale([curve(2.3, 0.0, 1e-30)])
    assert 0 < scale.low < 1e-5
    assert scale.inside(0.0) == scale.low


def test_without_any_loss_there_is_still_a_scale():
    scale = loss_scale([curve()])
    assert 0 < scale.low < scale.high
