import pytest
import torch
from torch import nn

from bnkit.behaviour import Affine, affine_of
from bnkit.surgery.folding import arithmetic
from bnkit.surgery.folding.arithmetic import (
    after_layer,
    before_layer,
    feature_axis,
    features_out,
    is_exact_before,
)
from cases import torchs

SHAPES = {1: (3, 4, 9), 2: (2, 4, 7, 6), 3: (2, 4, 5, 4, 6)}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
KINDS = {
    "plain": {},
    "without bias": {"bias": False},
    "two groups": {"groups": 2},
    "depthwise, two maps each": {"groups": 4, "bias": False},
    "dilated, with stride": {"dilation": 2, "stride": 2},
}
PADDED = {
    "padded with zeros": {"padding": 1},
    "padded to the same size, on one side more": {"padding": "same", "dilation": 3},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflected": {"padding": 2, "padding_mode": "reflect"},
    "repeated": {"padding": "same", "padding_mode": "replicate"},
}
RANKS = pytest.mark.parametrize("rank", [1, 2, 3])


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_norm(kind, features, **options):
    """Return one with |mean|/std of about 100, and scales of both signs."""
    norm = torchs(kind, features, **options).double().eval()
    with torch.no_grad():
        norm.running_mean.copy_(100 * random(features, seed=1))
        norm.running_var.copy_(random(features, seed=2).abs() + 0.5)
        if norm.weight is not None:
            norm.weight.copy_(random(features, seed=3))
        if norm.bias is not None:
            norm.bias.copy_(random(features, seed=4))
    return norm


def with_values(layer, weight, bias):
    """Run a layer with this weight and bias: a function of its input."""
    values = {"weight": weight, "bias": bias}
    if layer.bias is None:
        layer.bias = nn.Parameter(bias)
    return lambda x: torch.func.functional_call(layer, values, x)


def assert_folds_after(layer, x, norm):
    expected = norm(layer(x))
    weight, bias = after_layer(layer, affine_of(norm))
    actual = with_values(layer, weight, bias)(x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def assert_folds_before(layer, x, norm):
    x = x + 100 * random(4, seed=1).view(1, -1, *[1] * (x.dim() - 2))  # as the norm expects it
    expected = layer(norm(x))
    weight, bias = before_layer(layer, affine_of(norm))
    actual = with_values(layer, weight, bias)(x)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@RANKS
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("options", [*KINDS.values(), *PADDED.values()], ids=[*KINDS, *PADDED])
def test_every_conv_takes_in_the_batch_norm_after_it(rank, options):
    layer = CONVS[rank](4, 8, 2, **options).double()
    assert_folds_after(layer, random(*SHAPES[rank]), batch_norm(NORMS[rank], 8))


@RANKS
@pytest.mark.parametrize("options", [*KINDS.values(), {"padding": 1}], ids=[*KINDS, "padded"])
def test_every_transposed_conv_takes_in_the_batch_norm_after_it(rank, options):
    layer = TRANSPOSED[rank](4, 8, 2, **options).double()
    assert_folds_after(layer, random(*SHAPES[rank]), batch_norm(NORMS[rank], 8))


@RANKS
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_every_conv_without_padding_takes_in_the_batch_norm_before_it(rank, options):
    layer, norm = CONVS[rank](4, 8, 2, **options).double(), batch_norm(NORMS[rank], 4)
    assert is_exact_before(layer, affine_of(norm))
    assert_folds_before(layer, random(*SHAPES[rank]), norm)


@RANKS
@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_that_repeats_values_is_shifted_with_them(rank, mode):
    layer = CONVS[rank](4, 4, 3, padding=1, padding_mode=mode).double()
    norm = batch_norm(NORMS[rank], 4)
    assert is_exact_before(layer, affine_of(norm))
    assert_folds_before(layer, random(*SHAPES[rank]), norm)


@RANKS
@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"padding": 1}], ids=str)
def test_a_transposed_conv_of_one_tap_takes_in_the_batch_norm_before_it(rank, options):
    layer, norm = TRANSPOSED[rank](4, 4, 1, **options).double(), batch_norm(NORMS[rank], 4)
    assert is_exact_before(layer, affine_of(norm))
    assert_folds_before(layer, random(*SHAPES[rank]), norm)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, (1, 3), padding="same"),
        nn.ConvTranspose2d(4, 4, 2),  # edges are reached by one tap of two
        nn.ConvTranspose2d(4, 4, 1, stride=2),  # between them lies the bias alone
        nn.ConvTranspose2d(4, 4, 1, dilation=2, output_padding=1),
    ],
    ids=str,
)
def test_a_shift_that_does_not_reach_all_places_alike_has_no_bias(layer):
    norm, x = batch_norm(nn.BatchNorm2d, 4), random(*SHAPES[2])
    assert not is_exact_before(layer, affine_of(norm))
    shift = layer.double()(norm(x)) - layer(norm(x) - norm(torch.zeros_like(x)))
    assert (shift - shift[:, :, 2:3, 2:3]).abs().max() > 0.1
    scale_only = Affine(torch.ones(4), torch.zeros(4), torch.zeros(4))
    assert is_exact_before(layer, scale_only)


def test_a_scale_alone_passes_through_zeros_of_padding():
    norm = batch_norm(nn.BatchNorm2d, 4)
    with torch.no_grad():
        norm.bias.copy_(0), norm.running_mean.copy_(0)
    for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 3, stride=2)):
        assert is_exact_before(layer, affine_of(norm))
        x = random(*SHAPES[2])
        expected = layer.double()(norm(x))
        actual = with_values(layer, *before_layer(layer, affine_of(norm)))(x)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_layer_takes_in_batch_norms_on_both_sides(bias):
    layer = nn.Linear(4, 6, bias=bias).double()
    assert_folds_after(layer, random(5, 4), batch_norm(nn.BatchNorm1d, 6))
    layer = nn.Linear(4, 6, bias=bias).double()
    assert_folds_before(layer, random(5, 4), batch_norm(nn.BatchNorm1d, 4))


@pytest.mark.parametrize("options", [{"affine": False}, {"bias": False}, {"eps": 0.5}], ids=str)
def test_batch_norms_of_all_options_are_their_affine(options):
    norm = batch_norm(nn.BatchNorm1d, 4, **options)
    affine, x = affine_of(norm), 100 * random(8, 4)
    for y in (
        affine.scale * (x - affine.center) + affine.offset,
        affine.scale * x + affine.shift,
    ):
        torch.testing.assert_close(y, norm(x), rtol=1e-11, atol=1e-11)


def test_a_rounded_weight_does_no_harm_to_large_means():
    torch.manual_seed(0)
    layer, norm = nn.Linear(64, 16), batch_norm(nn.BatchNorm1d, 64).float()
    x = norm.running_mean * 100 + torch.randn(32, 64)  # |mean|/std of about 10,000
    norm.running_mean.mul_(100)
    exact = layer.double()(norm.double()(x.double()))
    weight, bias = before_layer(layer.float(), affine_of(norm.float()))
    assert weight.dtype == torch.float32
    rounded = x.double() @ weight.double().T + bias
    assert (rounded - exact).abs().max() / exact.abs().max() < 1e-6


def test_features_lie_where_torch_puts_them():
    assert [feature_axis(kind(2, 3, 1)) for kind in CONVS.values()] == [-2, -3, -4]
    assert [feature_axis(kind(2, 3, 1)) for kind in TRANSPOSED.values()] == [-2, -3, -4]
    assert [features_out(layer(2, 3)) for layer in (nn.Linear,)] == [3]
    assert features_out(nn.ConvTranspose1d(2, 6, 1, groups=2)) == 6


def test_the_map_of_other_features_is_the_identity():
    affine = Affine(*random(3, 4)).take(torch.tensor([2, -1]), like=torch.ones(1))
    assert (affine.scale[1], affine.shift[1]) == (1, 0)
    assert affine.scale[0] == random(3, 4)[0, 2]


@pytest.mark.parametrize("block", [1, 7, 2**16])
@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 5), nn.Conv2d(6, 4, 3, groups=2), nn.ConvTranspose1d(4, 6, 3, groups=2)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_weight_is_scaled_in_blocks_of_any_size_alike(layer, block, monkeypatch):
    out = features_out(layer)
    into = layer.weight.shape[1] * getattr(layer, "groups", 1)
    into = layer.in_channels if isinstance(layer, nn.ConvTranspose1d) else into
    after, before = (
        Affine(*torch.rand(3, features, dtype=torch.float64) + 0.5) for features in (out, into)
    )
    expected = after_layer(layer, after), before_layer(layer, before)
    monkeypatch.setattr(arithmetic, "_BLOCK", block)
    found = after_layer(layer, after), before_layer(layer, before)
    for (weight, bias), (same, near) in zip(found, expected, strict=True):
        assert torch.equal(weight, same)
        torch.testing.assert_close(bias, near, rtol=1e-14, atol=1e-14)
