"""The chart of the gap shows each layer at its place, and names the worst."""

from bnkit.report.gap_chart import gap_panel
from report.test_diagnosis_page import LAYERS, layer
from report.test_per_layer import rows


def test_lines_go_through_the_layers_in_their_order():
    so_far, own = rows(gap_panel(LAYERS).on_page, "line")
    assert [(row["place"], row["layer"]) for row in own] == [
        (1, "stem.bn"),
        (2, "deep.bn"),
        (3, "last.bn"),
    ]
    assert [row["own"] for row in own] == [0.05, 0.4, 0.05]
    assert [row["so_far"] for row in so_far] == [0.06, 0.06, 0.06]


def test_a_layer_of_which_nothing_is_known_leaves_a_gap_and_keeps_its_place():
    unknown = layer("off.bn", own_difference=None, difference=None, tolerance=None)
    drawn = gap_panel([LAYERS[0], unknown, LAYERS[1]]).on_page
    assert [row["place"] for row in next(rows(drawn, "line"))] == [1, 3]


def test_only_a_layer_over_its_threshold_is_named_in_the_chart():
    def named(layers):
        *_, last = rows(gap_panel(layers).on_page, "text")
        return [row["layer"] for row in last]

    assert named(LAYERS) == ["deep.bn"]
    assert named([LAYERS[0]]) == []
