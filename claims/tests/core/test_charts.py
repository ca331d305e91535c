"""A band runs through the median of several runs, with their range."""

from bnkit_claims.core.charts import band


def test_a_run_that_ended_early_is_missing_and_not_zero():
    line = band("x", (1, 2), [(0.5, 0.9), (0.4,), (0.6, 0.7)])
    assert line.y == (0.5, 0.8)
    assert (line.low, line.high) == ((0.4, 0.7), (0.6, 0.9))


def test_where_no_run_has_a_value_there_is_a_gap():
    assert band("x", (1, 2), [(0.5, None)]).y == (0.5, None)


def test_it_keeps_its_side_and_its_panel():
    line = band("plain", (1,), [(1,)], side="plain", panel="relu")
    assert (line.name, line.side, line.panel) == ("plain", "plain", "relu")
