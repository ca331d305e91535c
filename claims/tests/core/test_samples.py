import pytest
import torch
from torch import nn

from bnkit_claims.core.samples import SampleMeasure, frechet


def drawn(*, scale=1.0, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(400, 3, generator=generator, dtype=torch.float64) + shift


def test_the_distance_is_nothing_between_the_same_and_the_squared_shift_between_shifted_ones():
    assert frechet(drawn(), drawn()) == pytest.approx(0, abs=1e-9)
    assert frechet(drawn(), drawn(shift=2.0)) == pytest.approx(3 * 2.0**2)


def test_the_distance_of_scaled_ones_follows_from_the_standard_deviations():
    # All axes commute with themselves: tr A + tr 9A − 2 tr 3A = 4 tr A.
    mean_gap = (2 * drawn().mean(0)).square().sum()
    expected = 4 * torch.cov(drawn().T).trace() + mean_gap
    assert frechet(drawn(), drawn(scale=3.0)) == pytest.approx(expected.item())


def test_the_distance_agrees_with_the_root_of_a_product_that_is_not_symmetric():
    first, second = (
        drawn(),
        drawn(seed=1) @ torch.tensor([[1.0, 2, 0], [0, 1, 1], [3, 0, 1]]).double(),
    )
    a, b = torch.cov(first.T), torch.cov(second.T)
    roots = torch.linalg.eigvals(a @ b).real.sqrt().sum()  # of A B, similar to A^½ B A^½
    gap = (first.mean(0) - second.mean(0)).square().sum()
    assert frechet(first, second) == pytest.approx((gap + a.trace() + b.trace() - 2 * roots).item())


def test_features_are_what_the_last_layer_sees_and_classes_what_it_names():
    classifier = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        classifier[-1].weight.copy_(torch.eye(3))
    real, images = drawn().float(), drawn(seed=1, shift=1.0).float()
    measure = SampleMeasure(classifier, real)
    expected = frechet(images.relu().double(), real.relu().double())
    assert measure.distance(images) == pytest.approx(expected)
    assert measure.classes(torch.tensor([[1.0, 0, 0]] * 98 + [[0, 1.0, 0]] * 2)) == 2
    assert measure.classes(torch.tensor([[1.0, 0, 0]] * 99 + [[0, 1.0, 0]])) == 1
    assert measure.distance(images.log()) is None  # NaN
