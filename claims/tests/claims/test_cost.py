"""The verdict on what batch norm costs follows from biases, counts and seconds."""

import pytest
import torch
from torch import nn

from bnkit.experiments.results import SIDES
from bnkit_claims.claims.cost import CLAIM, Cost, bias_effect, judge, numbers
from bnkit_claims.core.evidence import Beside, Part

SETTINGS = Cost(networks=("mlp",), seeds=3)


def moved(effect, seeds=3):
    return [
        {
            "network": "mlp",
            "side": side,
            "seed": seed,
            "output": size,
            "gradient": size,
        }
        for side, size in (("plain", 0.5), ("batch norm", effect))
        for seed in range(seeds)
    ]


def counted(batch_norm):
    found = {"plain": 1000, "batch norm": batch_norm, "folded": 1000, "running": 40}
    return [{"network": "mlp", **found}]


def timed(slowdown, seeds=3):
    step = {"plain": 0.001, "batch norm": 0.001 * slowdown}
    return [
        {"network": "mlp", "seed": seed, "side": side, "step": step.get(side), "answer": 0.001}
        for seed in range(seeds)
        for side in (*SIDES, "folded")
    ]


def test_the_toy_run_finds_redundant_biases_and_more_parameters():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert [figure.kind for figure in evidence.figures] == ["dots"] * 3
    assert evidence.parts[0].what == "redundant biases in mlp"
    assert evidence.parts[0].shown is True
    assert evidence.parts[1] == Part(
        "fewer parameters in mlp", "27,710 without, 28,010 with batch norm", False
    )
    assert evidence.notes == ("Contrary to a source, batch norm adds parameters in mlp.",)


def test_biases_that_do_nothing_fewer_parameters_and_slower_steps_hold():
    evidence = judge(SETTINGS, moved(1e-13), counted(990), timed(1.6))
    assert evidence.verdict == "holds"
    assert evidence.parts == (
        Part(
            "redundant biases in mlp",
            "outputs move by at most 1e-13 of their size, gradient 1e-13 of the weights'",
            True,
        ),
        Part("fewer parameters in mlp", "1,000 without, 990 with batch norm", True),
        Part("slower steps in mlp", "1.60 (1.60 to 1.60) times as long", True),
    )
    assert evidence.notes == ()
    assert evidence.headline == (
        "With batch norm biases prove redundant in 1 of 1 networks, parameters are fewer in 1 of "
        "1, and a training step takes 1.6 times as long."
    )


def test_what_batch_norm_adds_at_run_time_is_told_beside():
    evidence = judge(SETTINGS, moved(1e-13), counted(1020), timed(1.6))
    assert evidence.beside == (
        Beside("the same biases in plain networks", "outputs move by up to 0.5 of their size"),
        Beside("running statistics in mlp", "40"),
        Beside("answers by mlp", "1.00 (1.00 to 1.00) times as long"),
        Beside("answers by mlp, folded", "1.00 (1.00 to 1.00) times as long, 1,000 parameters"),
    )


def test_biases_that_matter_more_parameters_and_equal_steps_do_not_hold():
    evidence = judge(SETTINGS, moved(1e-3), counted(1020), timed(1.0))
    assert evidence.verdict == "does not hold"
    assert [part.shown for part in evidence.parts] == [False, False, False]
    assert evidence.parts[0].figures == (
        "outputs move by at most 0.001 of their size, gradient 0.001 of the weights'"
    )
    assert evidence.notes == ("Contrary to a source, batch norm adds parameters in mlp.",)
    assert evidence.headline == (
        "With batch norm biases prove redundant in 0 of 1 networks, parameters are fewer in 0 of "
        "1, and a training step takes 1 times as long."
    )


def test_as_many_parameters_are_not_fewer_and_not_more():
    evidence = judge(SETTINGS, moved(1e-13), counted(1000), timed(1.6))
    assert [part.shown for part in evidence.parts] == [True, False, True]
    assert evidence.parts[1].what == "fewer parameters in mlp"
    assert evidence.notes == ()


def test_two_seeds_show_neither_redundancy_nor_slowness():
    evidence = judge(SETTINGS, moved(1e-13, seeds=2), counted(990), timed(1.6, seeds=2))
    assert evidence.verdict == "holds in part"  # a count needs no seeds
    assert [(part.what, part.shown) for part in evidence.parts] == [
        ("redundant biases in mlp", None),
        ("fewer parameters in mlp", True),
        ("slower steps in mlp", None),
    ]
    assert "biases prove redundant in 0 of 1 networks" in evidence.headline


def test_networks_that_differ_are_counted_and_span_a_range():
    names = ("mlp", "vgg")
    bias = [{**row, "network": name} for name in names for row in moved(1e-13)]
    counts = [*counted(990), {**counted(1020)[0], "network": "vgg"}]
    times = [*timed(1.2), *({**row, "network": "vgg"} for row in timed(2.0))]
    evidence = judge(Cost(networks=names, seeds=3), bias, counts, times)
    assert evidence.verdict == "holds in part"
    assert evidence.headline == (
        "With batch norm biases prove redundant in 2 of 2 networks, parameters are fewer in 1 of "
        "2, and a training step takes 1.2 to 2 times as long."
    )
    assert evidence.notes == ("Contrary to a source, batch norm adds parameters in vgg.",)


def test_a_gradient_alone_speaks_against_redundancy():
    rows = [{**row, "gradient": 0.1} for row in moved(1e-13)]
    evidence = judge(SETTINGS, rows, counted(990), timed(1.6))
    assert [part.shown for part in evidence.parts] == [False, True, True]
    assert evidence.parts[0].figures.endswith("gradient 0.1 of the weights'")


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(12, 6, dtype=torch.float64), torch.arange(12) % 3


def test_a_bias_after_batch_norm_is_felt(batch):
    layers = [nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)]
    model = nn.Sequential(*layers).double()
    assert max(bias_effect(model, ["0"], *batch, seed=0)) < 1e-12
    assert min(bias_effect(model, ["3"], *batch, seed=0)) > 0.01


def test_the_effect_of_the_bias_of_a_linear_model_is_the_bias_itself(batch):
    model = nn.Sequential(nn.Linear(6, 3)).double()
    shift = torch.randn(3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    expected = shift.abs().max() / model(batch[0]).abs().max()
    output, _ = bias_effect(model, ["0"], *batch, seed=7)
    assert output == pytest.approx(expected.item())


def test_each_normalised_feature_costs_one_parameter_more_and_two_statistics():
    found = numbers(Cost(), "vgg")
    features = 16 + 32 + 6 * 64 + 2 * 64  # 8 convolutions, 2 hidden dense layers
    assert found["batch norm"] - found["plain"] == features  # gamma and beta less a bias
    assert found["running"] == 2 * features
    assert found["folded"] == found["plain"]
