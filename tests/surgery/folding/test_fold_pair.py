import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

import bnkit
from bnkit import add, fold_pair
from bnkit.layers import BatchNorm1d, FrozenBatchNorm2d, SyncBatchNorm2d
from surgery.folding.states import randomised
from zoo.checks import fingerprint

PAIRS = {
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6), (5, 4)),
    "linear without bias": (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), (5, 4)),
    "1d": (nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), (5, 4, 9)),
    "2d": (nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), (5, 4, 9, 9)),
    "3d": (nn.Conv3d(4, 6, 3, padding="same"), nn.BatchNorm3d(6), (5, 4, 5, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (5, 4, 9, 9)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), (5, 4, 9, 9)),
    "circular": (
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(6),
        (5, 4, 9, 9),
    ),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (5, 4, 9)),
    "transposed 2d, grouped": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        nn.BatchNorm2d(6),
        (5, 4, 5, 5),
    ),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d(6), (5, 4, 4, 4, 4)),
    "without affine": (nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), (5, 4)),
    "of bnkit": (nn.Linear(4, 6), BatchNorm1d(6), (5, 4)),
    "frozen": (nn.Conv2d(4, 6, 3), FrozenBatchNorm2d(6), (5, 4, 9, 9)),
    "synchronised": (nn.Conv2d(4, 6, 3), SyncBatchNorm2d(6), (5, 4, 9, 9)),
}


@pytest.mark.parametrize(("layer", "norm", "shape"), PAIRS.values(), ids=PAIRS)
def test_in_float64_it_is_the_pair(layer, norm, shape):
    layer, norm = layer.double(), randomised(norm).double().eval()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = fingerprint(layer), fingerprint(norm)
    folded = fold_pair(layer, norm)
    expected = norm(layer(x))
    assert ((folded(x) - expected).abs().max() / expected.abs().max()).item() <= 1e-12
    assert (fingerprint(layer), fingerprint(norm)) == before
    assert type(folded) is type(layer)


@pytest.mark.parametrize("name", ["2d", "grouped", "transposed 1d", "linear"])
def test_it_is_what_torch_fuses(name):
    layer, norm, _ = copy.deepcopy(PAIRS[name])
    layer, norm = layer.float().eval(), randomised(norm).float().eval()
    folded = fold_pair(layer, norm)
    if name == "linear":
        fused = fuse_linear_bn_eval(layer, norm)
    else:
        fused = fuse_conv_bn_eval(layer, norm, transpose="transposed" in name)
    torch.testing.assert_close(folded.weight, fused.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(folded.bias, fused.bias, rtol=1e-5, atol=1e-6)


def test_dtype_and_what_trains_stay():
    layer = nn.Linear(4, 3, bias=False).half()
    layer.weight.requires_grad_(False)
    norm = randomised(nn.BatchNorm1d(3))
    folded = fold_pair(layer, norm)
    assert {p.dtype for p in folded.parameters()} == {torch.float16}
    assert (folded.weight.requires_grad, folded.bias.requires_grad) == (False, True)
    norm.bias.requires_grad_(False)
    assert not fold_pair(layer, norm).bias.requires_grad


def test_what_is_folded_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        folded = fold_pair(nn.Linear(2, 3), nn.BatchNorm1d(3))
    folded(torch.ones(1, 2)).sum().backward()
    assert folded.bias.grad is not None


def hooked():
    layer = nn.Linear(2, 3)
    layer.register_forward_hook(lambda *_: None)
    return layer


def infinite():
    norm = nn.BatchNorm1d(3)
    norm.running_mean[1] = float("inf")
    return norm


def huge():
    norm = nn.BatchNorm1d(3)
    nn.init.constant_(norm.weight, 1e38)
    return norm


class Squared(nn.BatchNorm1d):
    """Gives what no affine map gives."""

    def forward(self, x):
        return super().forward(x).square()


REFUSED = {
    "another layer": (nn.ReLU(), nn.BatchNorm1d(3), TypeError, "^`layer` is a ReLU: pass a Linear"),
    "another norm": (
        nn.Linear(2, 3),
        nn.GroupNorm(1, 3),
        TypeError,
        "^`batch_norm` is a GroupNorm: pass a batch norm$",
    ),
    "other features": (
        nn.Linear(2, 3),
        nn.BatchNorm1d(4),
        ValueError,
        "^`batch_norm` has 4 features and `layer` makes 3: they must be as many$",
    ),
    "no statistics": (
        nn.Linear(2, 3),
        nn.BatchNorm1d(3, track_running_stats=False),
        ValueError,
        r"^`batch_norm` \(BatchNorm1d\) cannot be folded: it has no running statistics: even in",
    ),
    "an activation": (
        nn.Linear(2, 3),
        BatchNorm1d(3, activation="relu"),
        ValueError,
        "cannot be folded: it ends in relu, which no weight computes$",
    ),
    "infinite": (nn.Linear(2, 3), infinite(), ValueError, "are not finite numbers, or its v"),
    "too large": (
        nn.Linear(2, 3).half(),
        huge(),
        ValueError,
        "^the weight or bias of `layer` would not be finite in torch.float16$",
    ),
    "hooks": (
        hooked(),
        nn.BatchNorm1d(3),
        ValueError,
        r"^`layer` \(Linear\) cannot take it in: hooks are registered on it$",
    ),
    "a forward of its own": (
        nn.Linear(2, 3),
        Squared(3),
        ValueError,
        r"^`batch_norm` \(Squared\) cannot be folded: its class has a forward of its own, which a",
    ),
    "a computed weight": (
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
        nn.BatchNorm1d(3),
        ValueError,
        r"cannot take it in: its weight or bias is computed \(weight norm",
    ),
    "a layer that owns one": (
        add(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(4, 2))[0],
        nn.BatchNorm1d(3),
        ValueError,
        r"^`layer` \(NormalizedLinear\) cannot take it in: it owns a batch norm already$",
    ),
}


@pytest.mark.parametrize(("layer", "norm", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_not_be_exact_is_refused(layer, norm, kind, message):
    with pytest.raises(kind, match=message):
        fold_pair(layer, norm)


def test_it_is_public():
    assert bnkit.fold_pair is fold_pair
