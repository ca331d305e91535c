"""Every pair of runs has its row of dots; one that never reaches the target is at the edge."""

from bnkit.report.step_charts import steps_chart, steps_scale
from report.fabricate import comparison, interrupted, never_run


def rows_of(found, activation):
    return steps_chart(found).panels[found.activations.index(activation)].data.values


def test_each_pair_that_ran_has_a_row():
    rows = rows_of(comparison([0.01, 0.1], ["relu"], 3, change=interrupted), "relu")
    settings = {(row["learning rate"], row["seed"]) for row in rows}
    assert settings == {("0.01", 0), ("0.01", 1), ("0.1", 0), ("0.1", 1)}  # seed 2 did not run
    assert all(row["side_1"] < row["side_0"] for row in rows)


def test_a_run_that_never_reaches_the_target_is_right_of_every_step():
    rows = rows_of(comparison([0.01], ["sigmoid"], 3), "sigmoid")
    assert all("plain: never\n" in row["reading"] and row["side_0"] > 2000 for row in rows)
    assert all(row["side_1"] <= 2000 for row in rows)


def test_never_is_a_tick_of_its_own_inside_the_axis():
    scale = steps_scale(comparison())
    assert scale.low < scale.ticks[0]
    assert scale.ticks[-2] <= 2000 < scale.ticks[-1] < scale.high


def test_without_any_run_there_is_a_scale_without_dots():
    found = comparison(change=never_run)
    assert rows_of(found, "relu") == []
    assert steps_scale(found).low < steps_scale(found).high
