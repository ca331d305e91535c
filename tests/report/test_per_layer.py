"""Charts of batch norms in their order keep to the grammar, and show each layer at its place."""

import altair as alt
import pytest

from bnkit.report.gap_chart import gap_panel
from bnkit.report.per_layer import dead_panel, gammas_panel, means_panel, variances_panel
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


def test_dead_channels_are_shares_of_the_layers_channels():
    found = next(rows(dead_panel(LAYERS).on_page, "bar"))
    assert [row["dead"] for row in found] == [0, 25, 0]
