"""Both accuracies of a network with batch norm stand side by side where they were measured."""

from bnkit.report.modes import two_modes
from report.fabricate import comparison, in_both_modes


def test_both_modes_of_batch_norm_are_compared_and_a_plain_side_without_a_gap_left_out():
    rows = two_modes(comparison([0.1], ["relu"], 3, change=in_both_modes))
    assert [row.side for row in rows] == ["batch norm"]
    assert rows[0].widest > rows[0].batch - rows[0].running >= 0
    assert two_modes(comparison([0.1], ["relu"], 3)) == ()
