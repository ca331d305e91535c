import inspect
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from bnkit.functional import batch_norm
from bnkit.kernels.activations import ACTIVATIONS
from bnkit.kernels.reference import batch_norm_forward, batch_norm_inference
from cases import CASES, Case

ACTIVATION = pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])


def statistics(channels, dtype=torch.float32):
    return torch.linspace(-1, 1, channels, dtype=dtype), torch.linspace(1, 2, channels, dtype=dtype)


def parameters(channels, dtype=torch.float32):
    return torch.linspace(-2, 2, channels, dtype=dtype), torch.linspace(0, 3, channels, dtype=dtype)


def test_the_signature_is_that_of_torch_and_two_keywords():
    ours = inspect.signature(batch_norm).parameters
    theirs = inspect.signature(F.batch_norm).parameters
    assert [(p.name, p.default, p.kind) for p in theirs.values()] == [
        (p.name, p.default, p.kind) for p in list(ours.values())[:-2]
    ]
    assert list(ours)[-2:] == ["activation", "residual"]


@TRAINING
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("torchs_kernels")  # of the core see kernels/test_core.py
def test_without_activation_and_residual_it_is_that_of_torch(case: Case, training):
    x = case.input(torch.float32)
    channels = x.shape[1]
    ours, theirs = statistics(channels), statistics(channels)
    options = (*parameters(channels), training, 0.3, 1e-3)
    assert torch.equal(batch_norm(x, *ours, *options), F.batch_norm(x, *theirs, *options))
    assert torch.equal(torch.stack(ours), torch.stack(theirs))


@TRAINING
@ACTIVATION
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "no residual"])
def test_activation_and_residual_are_those_of_the_specification(
    activation, with_residual, training
):
    x, residual = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    chosen = {"activation": activation, "residual": residual if with_residual else None}
    mean, variance = statistics(3, torch.float64)
    affine = parameters(3, torch.float64)
    if training:
        expected, *_ = batch_norm_forward(x, *affine, eps=1e-5, **chosen)
    else:
        expected = batch_norm_inference(x, mean, variance, *affine, eps=1e-5, **chosen)
    torch.testing.assert_close(
        batch_norm(x, mean, variance, *affine, training=training, **chosen), expected
    )


def test_residual_is_added_before_the_activation():
    x, residual = torch.tensor([[-1.0], [1.0]]), torch.tensor([[5.0], [-5.0]])
    y = batch_norm(x, None, None, training=True, eps=1e-12, activation="relu", residual=residual)
    assert y.flatten().tolist() == [4.0, 0.0]


def test_running_statistics_move_by_the_momentum_towards_the_unbiased_variance():
    x = torch.tensor([[1.0], [3.0]])
    mean, variance = torch.zeros(1), torch.ones(1)
    batch_norm(x, mean, variance, training=True, momentum=0.25, activation="silu")
    assert (mean.item(), variance.item()) == (0.25 * 2, 0.75 * 1 + 0.25 * 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_takes_parameters_in_float32(dtype):
    x = torch.randn(8, 3, 5).to(dtype)
    y = batch_norm(x, *statistics(3), *parameters(3), training=True, activation="gelu", residual=x)
    exact, *_ = batch_norm_forward(
        x.double(), *parameters(3), eps=1e-5, activation="gelu", residual=x.double()
    )
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=4e-2)


# Errors


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)], ids=str)
def test_one_value_per_channel_is_refused_in_training_only(shape):
    x = torch.randn(shape)
    message = r"`input` of shape \(1, 3.* has 1 value per channel.*use a larger mini-batch.*eval"
    with pytest.raises(ValueError, match=message):
        batch_norm(x, *statistics(3), training=True)
    assert batch_norm(x, *statistics(3)).shape == shape


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (4, 3, 0)], ids=str)
def test_empty_inputs_give_empty_outputs_as_in_torch(shape):
    mean, variance = statistics(shape[1])
    y = batch_norm(torch.zeros(shape), mean, variance, training=True, activation="relu")
    assert y.shape == shape
    assert torch.equal(mean, statistics(shape[1])[0])


def test_a_wrong_eps_is_refused_by_torch_and_its_message_stays():
    with pytest.raises(ValueError, match="eps must be positive"):
        batch_norm(torch.randn(4, 3), None, None, training=True, eps=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "swish"}, r"`activation` is 'swish': choose one of None, 'relu', .*'tanh'"),
        (
            {"residual": torch.zeros(4, 3, 1)},
            r"`residual` has shape \(4, 3, 1\) and `input` \(4, 3, 5\): .* the same shape",
        ),
        (
            {"residual": torch.zeros(4, 3, 5).half()},
            r"`residual` is torch.float16 and `input` is torch.float32: .*to\(input.dtype\)",
        ),
    ],
    ids=["activation", "shape of residual", "dtype of residual"],
)
def test_refusals_say_what_to_do_and_leave_the_running_statistics_alone(options, message):
    mean, variance = statistics(3)
    with pytest.raises(ValueError, match=message):
        batch_norm(torch.randn(4, 3, 5), mean, variance, training=True, **options)
    assert torch.equal(torch.stack([mean, variance]), torch.stack(statistics(3)))


# What torch builds on its own operations


@ACTIVATION
def test_gradients_can_be_differentiated_again(activation):
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in [(4, 2, 2), 2, 2, (4, 2, 2)]]

    def function(x, weight, bias, residual):
        chosen = {"activation": activation, "residual": residual}
        return batch_norm(x, None, None, weight, bias, training=True, **chosen)

    leaves = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradgradcheck(function, leaves)


# torch scripts its own forward derivatives, and warns that scripting is deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@TRAINING
def test_torch_func_takes_gradients_and_jacobian_products(training):
    x, tangent = torch.randn(2, 6, 3, dtype=torch.float64)
    mean, variance = (None, None) if training else statistics(3, torch.float64)

    def loss(x):
        y = batch_norm(x, mean, variance, training=training, activation="silu", residual=x)
        return y.square().sum()

    gradient = torch.func.grad(loss)(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(leaf), leaf)[0])
    _, directional = torch.func.jvp(loss, (x,), (tangent,))
    torch.testing.assert_close(directional, (gradient * tangent).sum())


def test_torch_func_vmap_maps_it_over_stacked_models():
    x, weight = torch.randn(5, 6, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    def function(x, weight):
        return batch_norm(x, None, None, weight, training=True, activation="relu", residual=x)

    each = torch.stack([function(*pair) for pair in zip(x, weight, strict=True)])
    torch.testing.assert_close(torch.func.vmap(function)(x, weight), each)


@TRAINING
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_as_one_graph(backend, training):
    torch.compiler.reset()
    compiled = torch.compile(batch_norm, fullgraph=True, backend=backend)
    x, residual = torch.randn(2, 6, 3, 5)
    for activation, added in product([None, "relu", "gelu"], [None, residual]):
        results = []
        for function in (batch_norm, compiled):
            leaf, running = x.clone().requires_grad_(), statistics(3)
            chosen = {"activation": activation, "residual": added}
            y = function(leaf, *running, *parameters(3), training=training, **chosen)
            y.square().sum().backward()
            results.append((y, leaf.grad, *running))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected)


def test_autocast_keeps_the_half_precision_of_the_layer_before():
    x, kernels = torch.randn(4, 2, 5, 5), torch.randn(3, 2, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        z = F.conv2d(x, kernels, padding=1)
        y = batch_norm(z, *statistics(3), *parameters(3), True, activation="relu", residual=z)
    assert y.dtype == torch.bfloat16
