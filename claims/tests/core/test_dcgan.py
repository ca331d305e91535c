import copy

import pytest
import torch
from torch import nn

from bnkit_claims.core.dcgan import AdversarialStep, discriminator, generator, sample


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
