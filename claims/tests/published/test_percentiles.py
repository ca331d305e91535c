from dataclasses import replace

from bnkit_claims.published.percentiles import EXPERIMENT, SETTINGS, moves


def test_both_networks_are_watched_and_each_quantity_has_its_value():
    short = replace(SETTINGS, data="digits", init="glorot", steps=40, every=20)
    found = moves(short, 0)
    assert list(found) == [
        "plain, move of a percentile in 500 steps",
        "plain, move of a percentile in 500 steps, in spreads of the unit",
        "batch norm, move of a percentile in 500 steps",
        "batch norm, move of a percentile in 500 steps, in spreads of the unit",
    ]
    assert {quantity.name for quantity in EXPERIMENT.quantities} == set(found)
    assert all(value > 0 for value in found.values())
    assert moves(short, 0) == found
