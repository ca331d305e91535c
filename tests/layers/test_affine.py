import pytest
import torch
from torch import nn

from bnkit.kernels.activations import ACTIVATIONS, find_activation
from bnkit.layers.affine import ChannelAffine, ResidualActivation, activation_module

SHAPES = pytest.mark.parametrize(
    "shape", [(5, 4), (5, 4, 3), (2, 4, 3, 2), (2, 4, 3, 2, 2)], ids=str
)
EVERY_ACTIVATION = pytest.mark.parametrize("name", ACTIVATIONS, ids=str)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def affine(features=4, **options):
    made = ChannelAffine(features, **options)
    with torch.no_grad():
        for seed, tensor in enumerate((made.weight, made.bias, made.center)):
            tensor.copy_(random(features, seed=seed))
    return made


@SHAPES
def test_each_channel_has_its_map(shape):
    layer, x = affine(), random(*shape)
    y = layer(x)
    for c in range(4):
        expected = (x[:, c] - layer.center[c]) * layer.weight[c] + layer.bias[c]
        torch.testing.assert_close(y[:, c], expected)


@SHAPES
def test_it_starts_as_the_identity(shape):
    x = random(*shape)
    assert torch.equal(ChannelAffine(4)(x), x)


@EVERY_ACTIVATION
def test_it_ends_in_an_activation_after_the_residual(name):
    layer, x, residual = affine(activation=name), random(5, 4), random(5, 4, seed=9)
    plain = affine()(x)
    function = find_activation(name).function
    torch.testing.assert_close(layer(x), function(plain))
    torch.testing.assert_close(layer(x, residual=residual), function(plain + residual))


@EVERY_ACTIVATION
def test_modules_of_activations_are_torchs_and_compute_the_same(name):
    module, x = activation_module(name), random(100) * 4
    assert type(module).__module__.startswith("torch.nn.modules")
    torch.testing.assert_close(module(x), find_activation(name).function(x), rtol=0, atol=0)


def test_large_means_lose_no_digits():
    layer = ChannelAffine(1)
    layer.center.fill_(1e6)
    nn.init.constant_(layer.weight, 8.0)
    assert layer(torch.tensor([[1e6 + 0.125]])).item() == 1.0


def test_inputs_in_half_precision_come_out_in_it():
    y = affine()(random(5, 4).half())
    assert y.dtype == torch.float16


def test_gradients_reach_weight_bias_and_input():
    layer, x = affine().double(), random(5, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    layer(x).sum().backward()
    assert layer.bias.grad.tolist() == [5.0] * 4
    torch.testing.assert_close(layer.weight.grad, (x.detach() - layer.center).sum(0))


def test_other_channels_are_refused():
    message = r"`input` of shape \[5, 3\] does not have 4 channels on axis 1, as this ChannelAffine"
    with pytest.raises(ValueError, match=message):
        ChannelAffine(4)(torch.zeros(5, 3))


@pytest.mark.parametrize(
    "make", [lambda a: ChannelAffine(2, activation=a), ResidualActivation, activation_module]
)
def test_an_unknown_activation_is_refused(make):
    with pytest.raises(ValueError, match=r"`activation` is 'swish': choose one of"):
        make("swish")


def test_what_remains_of_a_batch_norm_adds_and_bends():
    x, residual = random(5, 4), random(5, 4, seed=1)
    assert torch.equal(ResidualActivation()(x), x)
    assert torch.equal(ResidualActivation("relu")(x, residual), torch.relu(x + residual))
    assert repr(ResidualActivation("relu")) == "ResidualActivation('relu')"
    assert repr(ChannelAffine(3, activation="relu")) == "ChannelAffine(3, activation='relu')"


def test_parameters_and_center_are_in_the_state_with_device_and_dtype():
    layer = ChannelAffine(3, "cpu", torch.float64)
    assert list(layer.state_dict()) == ["weight", "bias", "center"]
    assert {t.dtype for t in layer.state_dict().values()} == {torch.float64}
