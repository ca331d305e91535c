"""The verdict on run time follows from the accuracy by each of the statistics."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnkit
from bnkit_claims.claims.run_time import CLAIM, RunTime, answers, judge, own_answers
from bnkit_claims.core.evidence import Beside, Part

SETTINGS = RunTime(
    seeds=3,
    networks=(("mlp", 120, 0.1),),
    momenta=(0.01,),
    mini_batches=(200,),
    looks=(30, 60, 90, 120),
)


def asked(single, network="mlp", seeds=3):
    return [
        {
            "network": network,
            "seed": seed,
            "population": 0.97,
            "own": [single, 0.96],
            "single": single,
            "one_answer": 1.0,
        }
        for seed in range(seeds)
    ]


def followed(moving, seeds=3):
    return [
        {"momentum": 0.01, "seed": seed, "moving": list(moving), "population": [0.9] * 4}
        for seed in range(seeds)
    ]


LATE = (0.3, 0.6, 0.9, 0.9)


def test_the_toy_run_answers_single_examples_with_one_class():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert [figure.kind for figure in evidence.figures] == ["lines", "lines"]
    for row in evidence.details:
        assert row["share of the most frequent answer"] == 1  # a dense network: zeros throughout
        assert row["one at a time"] < 0.3 < row["population statistics"]
    assert evidence.parts[0].what == "single examples fail with mlp"
    assert evidence.parts[0].shown is True
    assert Beside("single examples given the same answer, mlp", "100%") in evidence.beside


def spread(value):
    return f"+{value:.2f} (+{value:.2f} to +{value:.2f}) points"


def test_single_examples_that_fail_and_averages_that_arrive_late_hold():
    evidence = judge(SETTINGS, asked(0.05), followed(LATE))
    assert evidence.verdict == "holds"
    assert evidence.parts == (
        Part("single examples fail with mlp", f"{spread(92)} lost", True),
        Part("moving averages mislead early, momentum 0.01", f"{spread(60)} behind", True),
        Part("moving averages good enough at the end, momentum 0.01", f"{spread(0)} behind", True),
    )
    assert evidence.beside == (
        Beside(
            "single examples that are right with mlp",
            "5% with their own statistics, 97% with the population's",
        ),
        Beside("single examples given the same answer, mlp", "100%"),
        Beside("moving averages arrive, momentum 0.01", "within a point by step 90"),
    )
    assert evidence.headline == (
        "With their own statistics single examples lose 92 (mlp) points of accuracy; moving "
        "averages lose up to 60 along training and 0.0 at its end."
    )


def test_single_examples_that_are_right_and_averages_that_never_lag_or_always_do():
    never = judge(SETTINGS, asked(0.96), followed([0.9] * 4))
    assert never.verdict == "holds in part"
    assert [part.shown for part in never.parts] == [False, False, True]
    assert never.headline == (
        "With their own statistics single examples lose 1 (mlp) points of accuracy; moving "
        "averages lose up to 0 along training and 0.0 at its end."
    )
    always = judge(SETTINGS, asked(0.96), followed([0.88] * 4))
    assert always.verdict == "does not hold"
    assert [part.shown for part in always.parts] == [False, False, False]
    assert always.headline.endswith(
        "moving averages lose up to 2 along training and 2.0 at its end."
    )


def test_averages_that_are_ahead_lose_nothing():
    evidence = judge(SETTINGS, asked(0.05), followed([0.95] * 4))
    assert [part.shown for part in evidence.parts] == [True, False, True]
    assert evidence.headline.endswith("lose up to 0 along training and 0.0 at its end.")


def test_averages_that_stay_behind_are_said_to_arrive_at_no_time():
    evidence = judge(SETTINGS, asked(0.05), followed([0.3, 0.6, 0.8, 0.8]))
    arrival = Beside("moving averages arrive, momentum 0.01", "within a point at no time")
    assert arrival in evidence.beside
    assert [part.shown for part in evidence.parts] == [True, True, False]
    assert evidence.parts[2].what == "moving averages good enough at the end, momentum 0.01"


def test_a_network_that_does_without_population_statistics_is_named():
    both = replace(SETTINGS, networks=(*SETTINGS.networks, ("resnet", 120, 0.1)))
    results = [*asked(0.05), *asked(0.95, "resnet")]
    evidence = judge(both, results, followed(LATE))
    assert evidence.parts[0].shown is True
    assert evidence.parts[1] == Part("single examples fail with resnet", f"{spread(2)} lost", False)
    assert evidence.headline.startswith(
        "With their own statistics single examples lose 92 (mlp) and 2 (resnet) points of"
    )


def test_two_seeds_show_nothing():
    evidence = judge(SETTINGS, asked(0.05, seeds=2), followed(LATE, seeds=2))
    assert evidence.verdict == "not shown"
    assert [(part.figures, part.shown) for part in evidence.parts] == [
        ("+92.00 points lost", None),
        ("+60.00 points behind", None),
        ("+0.00 points behind", None),
    ]


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)]
    model = nn.Sequential(*layers)
    model(torch.randn(8, 1, 6, 6))
    return model


@pytest.mark.parametrize("size", [1, 4, 30])
def test_own_statistics_are_those_by_which_torch_normalises_in_training(model, size):
    inputs = 3 + 2 * torch.randn(30, 1, 6, 6)
    expected = torch.cat([model.train()(part).argmax(1) for part in inputs.split(size)])
    model.eval()
    kept = model[1].running_mean.clone()
    assert torch.equal(own_answers(model, inputs, size), expected)
    assert not torch.equal(answers(model, inputs), expected)
    assert torch.equal(model[1].running_mean, kept)  # asked of a copy


def test_a_dense_layer_turns_a_single_example_into_its_bias():
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    model = bnkit.add(plain, torch.zeros(2, 6))
    nn.init.normal_(model[0].batchnorm.bias)
    expected = F.linear(model[0].batchnorm.bias.relu(), model[2].weight, model[2].bias).argmax()
    found = own_answers(model, torch.randn(5, 6), 1)
    assert torch.equal(found, expected.expand(5))
