"""A panel shows medians, ranges and names of both sides, and what is missing."""

import pytest

from bnkit.report.figures import accuracy_figure, loss_figure
from report.fabricate import comparison, never_finite, only_plain


def layers(figure, mark):
    """The layers with this mark of the last panel of the only group."""
    (group,) = figure.groups
    return [layer for layer in group.panels[-1].drawing.layer if layer.mark.type == mark]


def names(figure):
    return [row["name"] for layer in layers(figure, "text") for row in layer.data.values]


def test_the_table_has_a_row_for_each_evaluation_with_six_values():
    figure = accuracy_figure(comparison([0.1], ["relu"], 3))
    header, *rows = figure.groups[0].panels[0].drawing.data.values.splitlines()
    assert header == "step,plain,plain_low,plain_high,batch_norm,batch_norm_low,batch_norm_high"
    assert len(rows) == 40
    for row in rows:
        _, plain, low, high, *batch_norm = map(float, row.split(","))
        assert low <= plain <= high
        assert batch_norm[1] <= batch_norm[0] <= batch_norm[2]


def test_each_line_bears_its_name_and_its_last_value():
    trials = comparison([0.1], ["relu"], 1).trials
    expected = [f"{name} {100 * trial.accuracy:.1f}%"
                for name, trial in zip(["plain", "BN"], trials, strict=True)]  # fmt: skip
    assert names(accuracy_figure(comparison([0.1], ["relu"], 1))) == expected


def test_sides_are_told_apart_without_colour():
    plain, batch_norm = layers(accuracy_figure(comparison([0.1], ["relu"], 1)), "line")
    assert plain.mark.strokeDash
    assert plain.mark.strokeWidth < batch_norm.mark.strokeWidth


def test_each_diverged_run_has_its_cross():
    (crosses,) = layers(accuracy_figure(comparison([3.0], ["relu"], 3)), "point")
    assert len(crosses.data.values) == 3


@pytest.mark.parametrize(
    ("change", "absent"),
    [
        pytest.param(only_plain, ["batch norm"], id="no run of one side"),
        pytest.param(never_finite, ["plain", "batch norm"], id="no finite loss"),
    ],
)
def test_a_side_without_a_curve_says_so(change, absent):
    figure = loss_figure(comparison([0.1], ["relu"], 1, change=change))
    assert [name for name in names(figure) if "nothing" in name] == [
        f"{side}: nothing to show" for side in absent
    ]
