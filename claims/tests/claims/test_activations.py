"""The verdict on activations follows from success rates, with and without batch norm."""

import math

import pytest
import torch
from torch import nn

from bnkit.experiments.results import SIDES
from bnkit_claims.claims.activations import CLAIM, Activations, judge, saturated_share, slope_of
from bnkit_claims.core.evidence import Beside, Part
from invented import invented_run

RATES = (0.01, 0.1, 1.0)  # the invented runs are at the middle one
SETTINGS = Activations(activations=("sigmoid",), learning_rates=RATES)


def trained(plain, batch_norm, *, activation="sigmoid", runs=5, saturated=(0.5, 0.5)):
    """Return `runs` runs a side, of which so many train."""
    return [
        {
            "activation": activation,
            "side": side,
            "seed": seed,
            "runs": {"0.1": invented_run(reached=10 if seed < count else None)},
            "saturated": {"0.1": share + seed / 100},
        }
        for side, count, share in zip(SIDES, (plain, batch_norm), saturated, strict=True)
        for seed in range(runs)
    ]


def test_the_toy_run_counts_runs_and_flat_units():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert [figure.kind for figure in evidence.figures] == ["dots", "dots"]
    assert len(evidence.details) == 2 * 2 * 4
    by_name = {(dot.row, dot.name): dot.value for dot in evidence.figures[1].dots}
    # A ReLU after batch norm is off for about half of what it gets, whatever the seed.
    assert by_name["relu", "batch norm"] == pytest.approx(50, abs=15)


def test_an_activation_that_only_batch_norm_trains_holds():
    evidence = judge(SETTINGS, trained(0, 5))
    assert evidence.verdict == "holds"
    assert evidence.parts == (
        Part("sigmoid made usable", "0/5 runs train without, 5/5 with batch norm", True),
    )
    assert evidence.headline == (
        "At 8 hidden layers 1 of 1 activations clearly train with batch norm and 0 without it; "
        "it rescues sigmoid."
    )


def test_an_activation_that_fails_with_it_as_well_does_not_hold():
    evidence = judge(SETTINGS, trained(0, 0))
    assert evidence.verdict == "does not hold"
    assert evidence.headline == (
        "At 8 hidden layers 0 of 1 activations clearly train with batch norm and 0 without it; "
        "it rescues none."
    )


def test_an_activation_that_batch_norm_spoils_does_not_hold():
    evidence = judge(SETTINGS, trained(5, 0))
    assert evidence.verdict == "does not hold"
    assert "0 of 1 activations clearly train with batch norm and 1 without" in evidence.headline


@pytest.mark.parametrize(
    "results",
    [trained(2, 5), trained(0, 3), trained(0, 3, runs=3)],
    ids=["plain trains now and then", "batch norm does", "three runs"],
)
def test_rates_that_cannot_tell_show_nothing(results):
    evidence = judge(SETTINGS, results)
    assert evidence.verdict == "not shown"
    assert evidence.headline.endswith("; it rescues none.")


def test_activations_that_need_no_help_say_nothing():
    found = judge(SETTINGS, trained(5, 5))
    assert found.verdict == "not shown"
    assert found.parts == (Part("activations that need help", "none", None),)
    assert found.beside[0] == Beside(
        "sigmoid, which needs no help", "5/5 runs train without, 5/5 with batch norm"
    )
    assert "These train with and without batch norm, and so say nothing: sigmoid." in found.notes
    assert found.headline == (
        "At 8 hidden layers 1 of 1 activations clearly train with batch norm and 1 without it; "
        "it rescues none."
    )


def test_activations_that_disagree_hold_in_part():
    settings = Activations(activations=("sigmoid", "tanh", "relu"))
    results = [
        *trained(0, 5),
        *trained(0, 0, activation="tanh"),
        *trained(5, 5, activation="relu"),
    ]
    evidence = judge(settings, results)
    assert evidence.verdict == "holds in part"
    assert [(part.what, part.shown) for part in evidence.parts] == [
        ("sigmoid made usable", True),
        ("tanh made usable", False),
    ]
    assert evidence.notes[0] == "These train with and without batch norm, and so say nothing: relu."
    assert evidence.headline == (
        "At 8 hidden layers 2 of 3 activations clearly train with batch norm and 1 without it; "
        "it rescues sigmoid."
    )


def test_units_that_saturate_no_less_are_told_against_the_paper():
    none = judge(SETTINGS, trained(0, 5))
    assert none.notes == (
        "Contrary to its sources, clearly fewer units saturate with no activation.",
    )
    assert none.beside == (
        Beside("saturated units with sigmoid", "52% without, 52% with batch norm"),
    )
    fewer = judge(SETTINGS, trained(0, 5, saturated=(0.5, 0.1)))
    assert fewer.notes == ("Clearly fewer units saturate with batch norm for sigmoid.",)


def test_two_seeds_do_not_tell_whether_fewer_units_saturate():
    assert judge(SETTINGS, trained(0, 2, runs=2, saturated=(0.5, 0.1))).notes == ()


@pytest.mark.parametrize(
    ("function", "derivative"),
    [
        (nn.Sigmoid(), lambda x: math.exp(-x) / (1 + math.exp(-x)) ** 2),
        (nn.Tanh(), lambda x: 1 - math.tanh(x) ** 2),
        (nn.LeakyReLU(0.01), lambda x: 1 if x > 0 else 0.01),
    ],
)
def test_slopes_are_the_derivatives(function, derivative):
    values = [-3.0, -0.5, 0.25, 2.0]
    expected = torch.tensor([derivative(x) for x in values], dtype=torch.float64)
    slopes = slope_of(function, torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(slopes, expected)


def test_a_sigmoid_is_flat_where_its_slope_is_under_a_twentieth_of_a_quarter():
    # s(1 - s) < 0.0125 means s < 0.01266, so |x| > log(0.98734 / 0.01266) = 4.357.
    inputs = torch.tensor([[4.3, -4.3, 4.4, -4.4]])
    assert saturated_share(nn.Sequential(nn.Sigmoid()), inputs, "sigmoid", flat=0.05) == 0.5


def test_units_that_are_not_numbers_count_as_saturated():
    inputs = torch.tensor([[math.nan, 1.0]])
    assert saturated_share(nn.Sequential(nn.ReLU()), inputs, "relu", flat=0.05) == 0.5


def test_shares_are_measured_behind_batch_norm_with_the_statistics_of_the_mini_batch():
    # Values far up on the sigmoid, which batch norm brings back to its middle.
    inputs = torch.tensor([[50.0], [51.0], [52.0], [53.0]])
    plain = nn.Sequential(nn.Sigmoid())
    normalised = nn.Sequential(nn.BatchNorm1d(1), nn.Sigmoid())
    assert saturated_share(plain, inputs, "sigmoid", flat=0.05) == 1
    assert saturated_share(normalised, inputs, "sigmoid", flat=0.05) == 0
    assert normalised.training
