"""The verdict on regularisation follows from noise, gaps, dropout and its variance shift."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bnkit_claims.claims.regularisation import (
    CLAIM,
    Regularisation,
    followed,
    judge,
    noise_of,
    shift_of,
)
from bnkit_claims.core.evidence import Beside, Part

SETTINGS = Regularisation(batch_sizes=(8,), noise_sizes=(2, 128))


def evidence(*, noise=0.4, plain=0.06, batch_norm=0.03, dropout=0.03, shift=1.5, **changed):
    """Return what is judged of invented results of `seeds` seeds; a gap is also the test error."""
    settings = replace(SETTINGS, batch_sizes=changed.get("batch_sizes", (8,)))
    seeds, train = range(changed.get("seeds", 3)), changed.get("train", 1.0)
    gaps = [
        {
            "side": side,
            "batch size": size,
            "dropout": dropped,
            "seed": seed,
            "train": train,
            "test": train - gap - seed / 1e5,
            "gap": gap + seed / 1e5,
        }
        for size in settings.batch_sizes
        for side, dropped, gap in [
            ("plain", False, plain if size == 8 else batch_norm),
            ("plain", True, dropout),
            ("batch norm", False, batch_norm),
            ("batch norm", True, batch_norm),
        ]
        for seed in seeds
    ]
    noises = [{"seed": seed, "noises": [noise, 0.1]} for seed in seeds]
    traps = [{"seed": seed, "shift": shift, "trapped": 0.8, "mended": 0.9} for seed in seeds]
    return judge(settings, noises, gaps, traps)


def test_the_toy_run_has_noise_that_falls_and_a_variance_that_dropout_shifts():
    evidence = CLAIM.run(CLAIM.settings("toy"))
    noise, gaps, _ = evidence.figures
    assert noise.lines[0].y[0] > noise.lines[0].y[-1] > 0
    assert len(gaps.dots) == 2 * 2 * 2
    assert all(row["shift"] > 1 for row in evidence.details if "shift" in row)


def test_all_parts_hold():
    found = evidence()
    assert found.verdict == "holds"
    noise = "4.00 (4.00 to 4.00) times as much at 2 examples as at 128"
    assert found.parts == (
        Part("noise that falls with the mini-batch size", noise, True),
        Part("a narrower gap at mini-batches of 8", "+3.00 (+3.00 to +3.00) points", True),
        Part(
            "no loss when batch norm replaces dropout",
            "+0.00 (+0.00 to +0.00) points of test accuracy",
            True,
        ),
        Part(
            "variance enlarged by dropout right before batch norm",
            "1.50 (1.50 to 1.50) times that in use",
            True,
        ),
    )
    regained = "accuracy regained by statistics without dropout"
    assert found.beside == (Beside(regained, "+10.00 (+10.00 to +10.00) points"),)
    assert found.headline == (
        "With batch norm the generalisation gap is 3.0 points narrower at mini-batches of 8; where "
        "it replaces dropout, test accuracy is the same."
    )


def test_no_noise_no_gain_and_no_shift_do_not_hold():
    found = evidence(noise=0.1, plain=0.03, batch_norm=0.035, dropout=0.01, shift=1.0)
    assert found.verdict == "does not hold"
    assert [part.shown for part in found.parts] == [False] * 4
    assert found.headline == (
        "With batch norm the generalisation gap is 0.5 points wider at mini-batches of 8; where it "
        "replaces dropout, test accuracy is 2.5 points lower."
    )


def test_a_gap_that_only_narrows_at_one_size_holds_in_part():
    found = evidence(batch_sizes=(8, 32))
    assert found.verdict == "holds in part"
    shown = {part.what: part.shown for part in found.parts}
    assert shown["a narrower gap at mini-batches of 8"] is True
    assert shown["a narrower gap at mini-batches of 32"] is False
    sizes = "3.0 points narrower at mini-batches of 8 and the same at mini-batches of 32"
    assert sizes in found.headline


def test_networks_that_did_not_train_have_no_gap_to_compare():
    found = evidence(train=0.5)
    unknown = "an unknown number of points"
    assert Part("a narrower gap at mini-batches of 8", unknown, None) in found.parts
    assert found.headline == (
        "With batch norm the generalisation gap is not comparable at mini-batches of 8; where it "
        "replaces dropout, test accuracy is not comparable."
    )


def test_two_seeds_show_nothing():
    found = evidence(seeds=2)
    assert found.verdict == "not shown"
    assert found.parts[1].figures == "+3.00 points"


def test_a_network_without_batch_norm_has_no_noise_and_batch_norm_that_of_its_mean():
    inputs = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).double()

    def noise(model, size):
        generator = torch.Generator().manual_seed(1)
        settings = Regularisation(watched=50, draws=40)
        return noise_of(model, inputs, inputs, size, settings, generator)

    layer = nn.BatchNorm1d(3).double()
    assert noise(nn.Linear(3, 2).double(), 4) == pytest.approx(0, abs=1e-12)
    # To first order (x − μ) / σ moves by (1 + x² / 2) / m of variance, 1.5 / m for normal x; less,
    # since 99 companions are drawn from 500 without replacement.
    expected = (1.5 / 100 * (1 - 99 / 500)) ** 0.5
    assert noise(layer, 100) == pytest.approx(expected, rel=0.1)


def test_dropout_right_before_batch_norm_shifts_its_variance_by_the_published_formula():
    torch.manual_seed(0)
    inputs = 2 + 3 * torch.randn(100_000, 1).double()  # c = 2, v = 9
    used = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(1, momentum=1.0).double())
    used(inputs)
    expected = ((4 + 9) / 0.5 - 4) / 9  # Li et al. 2019: ((c² + v) / p − c²) / v
    mended = nn.Sequential(nn.Identity(), nn.BatchNorm1d(1, momentum=1.0).double())
    mended(inputs)
    assert shift_of(used, mended) == pytest.approx(expected, rel=0.02)


def test_layers_follow_each_activation():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    names = [type(layer).__name__ for layer in followed(model, lambda n: [nn.BatchNorm1d(n)])]
    assert names == ["Flatten", "Linear", "ReLU", "BatchNorm1d", "Linear"]
