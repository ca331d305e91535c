import copy

import pytest
import torch
from torch import nn

from bnkit_claims.core.dcgan import (
    AdversarialStep,
    SampleMeasure,
    discriminator,
    frechet,
    generator,
    sample,
)


@pytest.mark.parametrize("side", [8, 28])
def test_batch_norm_is_everywhere_but_at_the_output_and_the_input_layer(side):
    make = generator(side, width=4, noise=5, batch_norm=True)
    doubt = discriminator(side, width=4, batch_norm=True)
    assert make(torch.randn(2, 5)).shape == (2, 1, side, side)
    assert doubt(torch.randn(2, 1, side, side)).shape == (2, 1)
    assert [type(layer) for layer in make[-2:]] == [nn.ConvTranspose2d, nn.Tanh]
    assert [type(layer) for layer in doubt[:2]] == [nn.Conv2d, nn.LeakyReLU]
    norms = [sum(isinstance(part, nn.BatchNorm2d) for part in net) for net in (make, doubt)]
    assert norms == [2, 1]
    assert all((norm.weight == 1).all() for norm in make if isinstance(norm, nn.BatchNorm2d))


def test_a_step_makes_the_discriminator_tell_them_apart_better_and_moves_both_networks():
    torch.manual_seed(0)
    make = generator(8, width=4, noise=5, batch_norm=False)
    doubt = discriminator(8, width=4, batch_norm=False)
    start = [part.clone() for net in (make, doubt) for part in net.parameters()]
    real = torch.ones(16, 1, 8, 8)
    step = AdversarialStep(make, doubt, noise=5, learning_rate=0.001)
    for _ in range(10):
        step(real)
    with torch.no_grad():
        assert doubt(real).mean() > doubt(make(torch.randn(16, 5))).mean()
    ends = [part for net in (make, doubt) for part in net.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(start, ends, strict=True))


def test_samples_are_made_with_running_statistics_and_change_none():
    make = generator(8, width=4, noise=5, batch_norm=True)
    before = {name: value.clone() for name, value in make.state_dict().items()}
    torch.manual_seed(0)
    many = sample(make, 10, 5)
    torch.manual_seed(0)
    expected = copy.deepcopy(make).eval()(torch.randn(10, 5))  # within ±1
    assert many.shape == (10, 1, 8, 8)
    torch.testing.assert_close(many, (expected + 1) / 2, check_stride=False)
    assert 0 <= many.min() <= many.max() <= 1
    assert make.training
    assert all(torch.equal(before[name], value) for name, value in make.state_dict().items())


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
