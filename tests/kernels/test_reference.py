from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bnkit.kernels.activations import ACTIVATIONS
from bnkit.kernels.reference import (
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference,
    running_statistics,
)
from cases import CASES, Case, channels_last, seeded

EPS = 1e-5
ORDINARY = CASES[0]
# Of the result; in half precision it is that of the output's last digit.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
ROUNDING_OF_MEAN = {torch.float64: 2**-53}  # of float32 for all others
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])


@dataclass(frozen=True)
class Problem:
    """All that a batch norm is given; `weight`, `bias` and `residual` may be None."""

    x: torch.Tensor
    dy: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    mean: torch.Tensor
    variance: torch.Tensor
    activation: str | None


def problem(case: Case, dtype, *, activation=None, parts=("weight", "bias", "residual"), seed=0):
    x = case.input(dtype, seed=seed)
    parameters = torch.promote_types(dtype, torch.float32)

    def draw(offset, shape, wanted=dtype):
        return torch.randn(shape, generator=seeded(seed + offset), dtype=torch.float64).to(wanted)

    channels = x.shape[1]
    return Problem(
        x=x,
        dy=draw(1, x.shape),
        weight=draw(2, channels, parameters) if "weight" in parts else None,
        bias=draw(3, channels, parameters) if "bias" in parts else None,
        residual=draw(4, x.shape) if "residual" in parts else None,
        mean=draw(5, channels, parameters) * case.scale + case.shift,
        variance=draw(6, channels, parameters).abs() * case.scale**2,
        activation=activation,
    )


def ours(p: Problem, *, training):
    """Return y and the gradients; the backward gets the statistics of the forward."""
    given = {"eps": EPS, "activation": p.activation, "residual": p.residual}
    statistics, parameters = (p.mean, p.variance), (p.weight, p.bias)
    if training:
        y, *statistics = batch_norm_forward(p.x, *parameters, **given)
    else:
        y = batch_norm_inference(p.x, *statistics, *parameters, **given)
    terms = p.x, *statistics, *parameters
    return y, *batch_norm_backward(p.dy, *terms, **given, training=training)


def of_torch(p: Problem, *, training):
    """Return what torch's batch norm and autograd make of the same values in float64."""
    leaves = [
        None if t is None else t.double().requires_grad_()
        for t in (p.x, p.weight, p.bias, p.residual)
    ]
    x, weight, bias, residual = leaves
    statistics = (None, None) if training else (p.mean.double(), p.variance.double())
    z = F.batch_norm(x, *statistics, weight, bias, training=training, eps=EPS)
    z = z if residual is None else z + residual
    y = ACTIVATIONS[p.activation].function(z)
    gradients = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], p.dy.double()))
    return y.detach(), *(None if t is None else next(gradients) for t in leaves)


def assert_agree(case: Case, p: Problem, *, training):
    """Compare y, dx, dweight, dbias and dresidual, each on the scale of the terms it sums."""
    variance = p.variance if not training else p.x.double().transpose(0, 1).flatten(1).var(1)
    slope = (variance.double() + EPS).rsqrt().max()
    reach = 1 + p.dy.double().abs().amax()
    amount = p.dy.double().abs().movedim(1, 0).flatten(1).sum(1).max()
    scales = (5.0, 5 * slope * reach, 5 * amount, amount, reach)
    rounding = ROUNDING_OF_MEAN.get(p.x.dtype, 2**-24) * case.condition(EPS)
    tolerance = TOLERANCE[p.x.dtype] + rounding
    results = zip(ours(p, training=training), of_torch(p, training=training), scales, strict=True)
    for got, expected, scale in results:
        if expected is None:
            assert got is None
        else:
            atol = float(tolerance * scale)
            torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=atol)


@TRAINING
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in CASES for dtype in TOLERANCE if case.fits(dtype)],
    ids=str,
)
def test_awkward_inputs_agree_with_torch_in_float64(case, dtype, training):
    # A smooth activation: at a kink the last digit would decide the gradient.
    assert_agree(case, problem(case, dtype, activation="silu"), training=training)


@TRAINING
@DTYPES
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_every_activation_agrees_with_torch(activation, dtype, training):
    assert_agree(ORDINARY, problem(ORDINARY, dtype, activation=activation), training=training)


@TRAINING
@pytest.mark.parametrize(
    "parts",
    [(), ("weight",), ("bias",), ("residual",), ("weight", "bias"), ("bias", "residual")],
    ids=lambda parts: " and ".join(parts) or "nothing",
)
def test_parameters_and_residual_may_be_missing(parts, training):
    p = problem(ORDINARY, torch.float64, activation="relu", parts=parts)
    assert_agree(ORDINARY, p, training=training)


class Ours(torch.autograd.Function):
    """The reference behind autograd, for finite differences."""

    @staticmethod
    def forward(ctx, x, weight, bias, residual, activation):
        y, *statistics = batch_norm_forward(
            x, weight, bias, eps=EPS, activation=activation, residual=residual
        )
        ctx.save_for_backward(x, *statistics, weight, bias, residual)
        ctx.activation = activation
        return y

    @staticmethod
    def backward(ctx, dy):
        *saved, residual = ctx.saved_tensors
        given = {"eps": EPS, "activation": ctx.activation, "residual": residual}
        return *batch_norm_backward(dy, *saved, **given), None


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_gradients_agree_with_finite_differences(activation):
    p = problem(Case("small", (3, 2, 2)), torch.float64)
    inputs = [t.requires_grad_() for t in (p.x, p.weight, p.bias, p.residual)]
    assert torch.autograd.gradcheck(lambda *tensors: Ours.apply(*tensors, activation), inputs)


@DTYPES
def test_statistics_and_gradients_keep_their_dtypes(dtype):
    p = problem(ORDINARY, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    y, mean, variance = batch_norm_forward(p.x, p.weight, p.bias, eps=EPS)
    assert (y.dtype, mean.dtype, variance.dtype) == (dtype, wide, wide)
    _, dx, dweight, dbias, dresidual = ours(p, training=True)
    assert (dx.dtype, dweight.dtype, dbias.dtype, dresidual.dtype) == (dtype, wide, wide, dtype)


def test_gradients_of_half_precision_parameters_are_in_half_precision():
    p = problem(ORDINARY, torch.bfloat16)
    weight, bias = p.weight.bfloat16(), p.bias.bfloat16()
    _, mean, variance = batch_norm_forward(p.x, weight, bias, eps=EPS)
    _, *gradients, _ = batch_norm_backward(p.dy, p.x, mean, variance, weight, bias, eps=EPS)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 2


def test_half_precision_loses_digits_in_the_output_only():
    # torch rounds after each of normalising, adding and activating; this rounds once.
    p = problem(ORDINARY, torch.bfloat16, activation="gelu")
    y, *_ = ours(p, training=True)
    exact, *_ = of_torch(p, training=True)
    assert torch.equal(y, exact.bfloat16())


@pytest.mark.parametrize("shift", [1e4, -1e6])
def test_variance_is_exact_where_the_mean_is_far_from_zero(shift):
    x = torch.randn(4096, 3, generator=seeded(0)) + shift
    _, _, variance = batch_norm_forward(x, None, None, eps=EPS)
    exact = x.double().var(0, correction=0)
    torch.testing.assert_close(variance.double(), exact, rtol=1e-6, atol=0)


def test_a_constant_channel_gives_exactly_the_bias():
    bias = torch.tensor([0.3, -7.0])
    y, _, variance = batch_norm_forward(torch.full((1000, 2), 0.1), None, bias, eps=EPS)
    assert torch.equal(y, bias.expand(1000, 2))
    assert variance.tolist() == [0, 0]


def test_memory_format_is_kept():
    x = channels_last(torch.randn(4, 6, 5, 3))
    y, mean, variance = batch_norm_forward(x, None, None, eps=EPS)
    dx, *_ = batch_norm_backward(x, x, mean, variance, None, None, eps=EPS)
    assert y.stride() == dx.stride() == x.stride()


@TRAINING
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "tanh"], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("place", ["x", "dy", "residual"])
def test_values_that_are_not_finite_spread_as_in_torch(place, bad, activation, training):
    p = problem(ORDINARY, torch.float64, activation=activation)
    getattr(p, place)[2, 1, 3, 3] = bad
    for got, expected in zip(
        ours(p, training=training), of_torch(p, training=training), strict=True
    ):
        torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("value", [None, torch.nan, torch.inf])
def test_running_statistics_move_as_torchs_and_a_guard_keeps_what_is_not_finite_out(
    value, momentum
):
    x = torch.randn(5, 3, 4, generator=seeded(0), dtype=torch.float64)
    if value is not None:
        x[0, 1, 0] = value
    layer = torch.nn.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
    before = layer.running_mean.clone(), layer.running_var.clone()
    layer(x)
    _, *statistics = batch_norm_forward(x, None, None, eps=1e-5)
    options = {"count": 20, "momentum": momentum}
    *found, entered = running_statistics(*before, *statistics, **options, guarded=False)
    for got, wanted in zip(found, (layer.running_mean, layer.running_var), strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)
    assert entered
    *guarded, entered = running_statistics(*before, *statistics, **options)
    assert entered == (value is None)
    for got, wanted in zip(guarded, found if entered else before, strict=True):
        assert torch.equal(got, wanted)


def test_nothing_is_recorded_for_autograd():
    x = torch.randn(4, 3, requires_grad=True)
    y, mean, variance = batch_norm_forward(x, None, None, eps=EPS)
    assert not any(t.requires_grad for t in (y, mean, variance))


def test_an_empty_input_has_no_statistics():
    with pytest.raises(ValueError, match=r"shape \(0, 3\) is empty"):
        batch_norm_forward(torch.zeros(0, 3), None, None, eps=EPS)


# Algebra that holds for every input, with the section of the paper that states it.

problems = st.builds(
    lambda samples, channels, space, shift, seed: problem(
        Case("drawn", (samples, channels, space), shift=shift), torch.float64, seed=seed
    ),
    samples=st.integers(2, 6),
    channels=st.integers(1, 4),
    space=st.integers(1, 5),
    shift=st.sampled_from([0.0, -3.0, 1e3]),
    seed=st.integers(0, 2**32),
)
scales = st.floats(1e-3, 1e3)
for_all = settings(deadline=None, max_examples=40)


def normalised(x, weight=None, bias=None, *, eps=EPS):
    return batch_norm_forward(x, weight, bias, eps=eps)[0]


def gradient(p, x, *, eps=EPS):
    _, mean, variance = batch_norm_forward(x, p.weight, p.bias, eps=eps)
    return batch_norm_backward(p.dy, x, mean, variance, p.weight, p.bias, eps=eps)


def over_channel(x, statistic):
    return statistic(x.movedim(1, 0).flatten(1))


@for_all
@given(p=problems, a=scales)
def test_the_scale_of_the_weights_before_does_not_matter(p, a):
    # Section 3.3: BN((aW)u) = BN(Wu). Eps is on the scale of the variance, so it goes along.
    y = normalised(p.x, p.weight, p.bias)
    torch.testing.assert_close(normalised(a * p.x, p.weight, p.bias, eps=a * a * EPS), y)


@for_all
@given(p=problems, a=scales)
def test_larger_weights_before_get_smaller_gradients(p, a):
    # Section 3.3: ∂BN((aW)u)/∂(aW) = 1/a · ∂BN(Wu)/∂W.
    dx, dweight, *_ = gradient(p, p.x)
    dx_scaled, dweight_scaled, *_ = gradient(p, a * p.x, eps=a * a * EPS)
    torch.testing.assert_close(a * dx_scaled, dx)
    torch.testing.assert_close(dweight_scaled, dweight)


@for_all
@given(p=problems)
def test_a_bias_before_does_not_matter(p):
    # Section 3.2: Wu + b has the same normalisation as Wu.
    shift = p.bias[:, None]
    torch.testing.assert_close(normalised(p.x + shift), normalised(p.x))


@for_all
@given(p=problems)
def test_each_channel_of_the_output_has_mean_beta_and_deviation_gamma(p):
    y = normalised(p.x, p.weight, p.bias)
    variance = over_channel(p.x, lambda v: v.var(1, correction=0))
    shrunk = p.weight.abs() * (variance / (variance + EPS)).sqrt()
    torch.testing.assert_close(over_channel(y, lambda v: v.mean(1)), p.bias)
    torch.testing.assert_close(over_channel(y, lambda v: v.std(1, correction=0)), shrunk)


def terms_of_gradient(p, *, eps):
    """Return how large the terms are of which the gradient of the input is a difference."""
    variance = over_channel(p.x, lambda v: v.var(1, correction=0))
    return (p.dy.abs().sum() * (p.weight.abs() * (variance + eps).rsqrt()).max()).item()


@for_all
@given(p=problems)
def test_the_gradient_of_the_input_sums_to_zero_over_the_batch(p):
    # Moving all values of a channel together changes nothing.
    dx, *_ = gradient(p, p.x)
    total = over_channel(dx, lambda v: v.sum(1))
    assert total.abs().max() <= 1e-10 * terms_of_gradient(p, eps=EPS)


@for_all
@given(p=problems)
def test_the_gradient_of_the_input_is_orthogonal_to_it_without_eps(p):
    # Stretching all deviations of a channel together changes nothing.
    dx, *_ = gradient(p, p.x, eps=0.0)
    along = over_channel(dx * normalised(p.x, eps=0.0), lambda v: v.sum(1))
    assert along.abs().max() <= 1e-10 * terms_of_gradient(p, eps=0.0)


@for_all
@given(p=problems, seed=st.integers(0, 9))
def test_the_order_of_the_samples_does_not_matter(p, seed):
    order = torch.randperm(len(p.x), generator=seeded(seed))
    torch.testing.assert_close(normalised(p.x[order]), normalised(p.x)[order])


@for_all
@given(p=problems)
def test_inference_with_the_statistics_of_the_batch_is_training(p):
    y, mean, variance = batch_norm_forward(p.x, p.weight, p.bias, eps=EPS)
    assert torch.equal(batch_norm_inference(p.x, mean, variance, p.weight, p.bias, eps=EPS), y)
