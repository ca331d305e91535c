"""Charts of batch norms in their order keep to the grammar, and show each layer at its place."""

import altair as alt
import pytest

from bnkit.report.per_layer import (
    dead_panel,
    gammas_panel,
    gap_panel,
    means_panel,
    variances_panel,
)
from report.test_diagnosis_page import LAYERS, layer

PANELS = (gap_panel, means_panel, variances_panel, gammas_panel, dead_panel)


def rows(specification, mark):
    """Return the data of the layers of this kind of mark."""
    for each in specification["layer"]:
        kind = each["mark"]["type"] if isinstance(each["mark"], dict) else each["mark"]
        if kind == mark:
            name = each.get("data", specification.get("data", {}))["name"]
            yield specification["datasets"][name]


@pytest.mark.parametrize("make", PANELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("number", [1, 60])
def test_the_specification_is_valid_for_any_number_of_layers(make, number):
    layers = [layer(f"bn{index}", dead=1) for index in range(number)]
    alt.Chart.from_dict(make(layers).on_page)  # raises where the grammar is broken


@pytest.mark.parametrize("make", PANELS, ids=lambda make: make.__name__)
def test_what_is_known_of_no_layer_has_no_chart(make):
    nothing = dict.fromkeys(("mean_shift", "variance_ratio", "gamma", "own_difference", "dead",
                             "collapsed"))  # fmt: skip
    assert make([layer("bn", **nothing)]) is None
    assert make([]) is None


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


def test_dead_channels_are_shares_of_the_layers_channels():
    found = next(rows(dead_panel(LAYERS).on_page, "bar"))
    assert [row["dead"] for row in found] == [0, 25, 0]
