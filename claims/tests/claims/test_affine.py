"""The verdict on gamma and beta follows from the accuracy without them, and what they undo."""

import copy

import pytest
import torch
from torch import nn

from bnkit.surgery import add
from bnkit_claims.claims.affine import (
    CLAIM,
    VARIANTS,
    Affine,
    batch_norms,
    beta_frozen,
    gamma_frozen,
    judge,
    off,
    undone_by,
)
from bnkit_claims.core.evidence import Beside, Part
from invented import invented_run

SETTINGS = Affine(activations=("relu",))


def trained(*, learned=0.97, without=0.9, undone=0.9, seeds=3, activation="relu"):
    """Return invented runs of every variant; all but the learned one end at `without`."""
    return [
        {
            "variant": variant,
            "activation": activation,
            "seed": seed,
            "runs": {"0.1": invented_run(reached=10, accuracy=accuracy + seed / 1e5)},
            "undone": {"0.1": {"gamma": undone + seed / 1e5, "beta": undone - seed / 1e5}},
        }
        for variant in VARIANTS
        for accuracy in [learned if variant == "learned" else without]
        for seed in range(seeds)
    ]


def test_the_toy_run_measures_every_variant_and_what_the_learned_one_undoes():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    assert {row["variant"] for row in evidence.details} == set(VARIANTS)
    assert {line.name for line in evidence.figures[0].lines} == set(VARIANTS)
    assert all(dot.value is not None for dot in evidence.figures[2].dots)


def test_needed_and_undoing_holds():
    evidence = judge(SETTINGS, trained())
    assert evidence.verdict == "holds"
    gained = "+7.00 (+7.00 to +7.00) points"
    assert evidence.parts == (
        Part("accuracy gained by gamma and beta with relu", gained, True),
        Part("normalisation undone by gamma with relu", "90.0% (90.0% to 90.0%)", True),
        Part("normalisation undone by beta with relu", "90.0% (90.0% to 90.0%)", True),
    )
    assert evidence.beside == (
        Beside("gain over gamma frozen at 1 with relu", gained),
        Beside("gain over beta frozen at 0 with relu", gained),
    )
    assert evidence.headline == (
        "Learned gamma and beta improve test accuracy with relu (relu +7.0 points), and undo "
        "up to 90% of the normalisation."
    )
    assert evidence.notes == ()


def test_no_loss_and_nothing_undone_contradict_the_sources_plainly():
    evidence = judge(SETTINGS, trained(without=0.97, undone=-0.1))
    assert evidence.verdict == "does not hold"
    assert [part.shown for part in evidence.parts] == [False] * 3
    assert evidence.headline == (
        "Learned gamma and beta are not shown to improve test accuracy (relu +0.0 points), "
        "and undo none of the normalisation."
    )
    (note,) = evidence.notes
    assert note == (
        "Contrary to its sources, SGD leaves the normalisation in place: learned gamma and beta "
        "undo less than 50% of it."
    )


def test_needed_without_undoing_holds_in_part():
    evidence = judge(SETTINGS, trained(undone=0.1))
    assert evidence.verdict == "holds in part"
    assert [part.shown for part in evidence.parts] == [True, False, False]
    assert evidence.headline.endswith("and undo up to 10% of the normalisation.")


def test_the_activations_that_need_them_are_named():
    settings = Affine(activations=("sigmoid", "relu"))
    results = [*trained(without=0.97, activation="sigmoid"), *trained(activation="relu")]
    evidence = judge(settings, results)
    assert [part.shown for part in evidence.parts] == [False, True, True, True, True, True]
    improved = "improve test accuracy with relu (sigmoid +0.0, relu +7.0 points)"
    assert improved in evidence.headline


def test_two_seeds_show_nothing():
    evidence = judge(SETTINGS, trained(seeds=2))
    assert evidence.verdict == "not shown"
    assert "are not shown to improve test accuracy (relu +7.0 points)" in evidence.headline


def test_a_learned_run_that_diverged_undoes_nothing_known():
    results = trained()
    for row in results:
        row["undone"] = {"0.1": None}
    evidence = judge(SETTINGS, results)
    assert evidence.parts[1] == Part("normalisation undone by gamma with relu", "unknown", None)
    assert evidence.headline.endswith("and undo an unknown share of the normalisation.")
    assert evidence.notes == ()


@pytest.fixture
def twin():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    return add(plain, torch.zeros(2, 3))


def test_off_computes_what_both_frozen_compute_as_training_goes_on(twin):
    frozen = beta_frozen(gamma_frozen(copy.deepcopy(twin)))
    without = off(twin)
    inputs, targets = torch.randn(12, 3), torch.arange(12) % 2
    for model in (frozen, without):
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    assert torch.allclose(frozen(inputs), without(inputs), atol=1e-5)
    assert [p.shape for p in without[0].batchnorm.parameters()] == []


def test_gamma_of_sigma_and_beta_of_mu_undo_it_all_and_one_and_zero_nothing(twin):
    twin(3 + 2 * torch.randn(64, 3))
    layers = batch_norms(twin)
    assert undone_by(layers) == {"gamma": 0.0, "beta": 0.0}
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_((layer.running_var + layer.eps).sqrt())
            layer.bias.copy_(layer.running_mean)
    assert undone_by(layers) == pytest.approx({"gamma": 1.0, "beta": 1.0}, abs=1e-5)
    inputs = torch.randn(5, 8)
    assert torch.allclose(layers[0].eval()(inputs), inputs, atol=1e-5)  # the input is back


def test_frozen_ones_learn_nothing(twin):
    assert [p.requires_grad for p in gamma_frozen(twin)[0].batchnorm.parameters()] == [False, True]
    assert [p.requires_grad for p in beta_frozen(twin)[0].batchnorm.parameters()] == [False, False]
