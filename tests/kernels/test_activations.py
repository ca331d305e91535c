import pytest
import torch

from bnkit.kernels.activations import ACTIVATIONS, find_activation

TORCH = {
    None: torch.nn.Identity(),
    "relu": torch.nn.ReLU(),
    "leaky_relu": torch.nn.LeakyReLU(),
    "relu6": torch.nn.ReLU6(),
    "silu": torch.nn.SiLU(),
    "hardswish": torch.nn.Hardswish(),
    "gelu": torch.nn.GELU(),
    "sigmoid": torch.nn.Sigmoid(),
    "tanh": torch.nn.Tanh(),
}
NAMES = pytest.mark.parametrize("name", ACTIVATIONS, ids=str)


def gradient_of_torch(name, dy, z):
    z = z.clone().requires_grad_()
    y = TORCH[name](z) + 0  # so that the identity has a graph
    return torch.autograd.grad(y, z, dy)[0]


def test_every_activation_has_an_oracle():
    assert list(ACTIVATIONS) == list(TORCH)


@NAMES
def test_activations_and_their_gradients_are_those_of_torch(name):
    z = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    dy = torch.randn(z.shape, dtype=z.dtype)
    activation = find_activation(name)
    assert torch.equal(activation.function(z), TORCH[name](z))
    torch.testing.assert_close(activation.gradient(dy, z), gradient_of_torch(name, dy, z))


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("slope", [1.0, -2.0, float("inf"), float("nan")], ids=str)
def test_gradients_follow_torch_at_kinks_and_infinities(name, dtype, slope):
    # 0, ±3 and 6 are the kinks of relu, hardswish and relu6.
    z = torch.tensor([0.0, -0.0, 3.0, -3.0, 6.0, float("inf"), float("-inf")], dtype=dtype)
    dy = torch.full_like(z, slope)
    ours, theirs = find_activation(name).gradient(dy, z), gradient_of_torch(name, dy, z)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n not in {"relu6", "hardswish"}])
def test_gradients_of_nan_are_those_of_torch(name):
    dy, z = torch.tensor([2.0]), torch.tensor([float("nan")])
    ours, theirs = find_activation(name).gradient(dy, z), gradient_of_torch(name, dy, z)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize(("name", "expected"), [("relu6", 2.0), ("hardswish", float("nan"))])
def test_gradients_of_nan_are_fixed_where_torch_has_two_answers(name, expected):
    # torch's relu6 gives dy or 0, its hardswish dy or NaN, by the value's place in the vector.
    dy, z = torch.full((17,), 2.0), torch.full((17,), float("nan"))
    assert {str(v) for v in find_activation(name).gradient(dy, z).tolist()} == {str(expected)}
    theirs = gradient_of_torch(name, dy, z)
    torch.testing.assert_close(theirs[-1:], torch.tensor([2.0]))


def test_an_unknown_activation_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"`activation` is 'rleu': choose one of None, 'relu', "):
        find_activation("rleu")
