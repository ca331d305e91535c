import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from bnkit.layers import BatchNorm1d, MaskedBatchNorm1d
from bnkit.monitoring.channels import (
    Calls,
    is_fused,
    look_at_input,
    look_at_output,
)
from bnkit.monitoring.records import drift, lag, typical
from cases import CASES


def percentiles_of(given, output, *, fused_in=None):
    table = look_at_output(given, output, fused_in=fused_in)
    return table[:6].float().unflatten(0, (2, 3)).transpose(1, 2)  # (2, C, 3)


def lag_of(layer, x):
    calls = Calls()
    calls.begin("", layer, x, fused=False)
    calls.end("", x)
    (channels,) = calls.seen()
    return [off.item() for off in lag(channels.arrays(), layer.eps, layer.momentum or 0.0)]


def layer_for(x, **options):
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    return kinds[x.dim()](x.shape[1], **options)


@pytest.mark.parametrize("case", [c for c in CASES if len(c.shape) < 6], ids=str)
def test_percentiles_are_those_of_each_channel(case):
    x = case.input(torch.float32)
    layer = layer_for(x)
    y = layer(x)
    ours = percentiles_of(look_at_input(x), y)
    values = x.numel() // x.shape[1]
    for mine, full in zip(ours, (x, y.detach()), strict=True):
        channels = full.transpose(0, 1).flatten(1).numpy()
        ranks = [15, 50, 85]
        if values <= 1024:  # all of them: the nearest rank
            expected = np.percentile(channels, ranks, axis=1, method="nearest").T
            np.testing.assert_allclose(mine, expected, rtol=1e-6)
        else:  # a sample: the share of values below is that of the percentile, within 4 errors
            below = [(channels <= mine.numpy()[:, [i]]).mean(1) for i in range(3)]
            for share, percent in zip(below, ranks, strict=True):
                error = 4 * math.sqrt(percent * (100 - percent) / 1e4 / 1024)
                np.testing.assert_allclose(share, percent / 100, atol=error)


def test_a_sample_is_from_all_places_of_a_feature_map():
    # 64 · 16 · 16 values in steps of 16: without care all from the first column.
    x = torch.arange(16.0).expand(64, 1, 16, 16)
    given = look_at_input(x)
    assert set(given.sample.flatten().tolist()) == set(range(16))
    assert 1000 > len(given.sample) > 500


def test_what_goes_into_a_fused_activation_is_what_the_plain_layer_gives():
    x, residual = torch.randn(50, 6) * 2 + 1, torch.randn(50, 6)
    plain, fused = nn.BatchNorm1d(6), BatchNorm1d(6, activation="relu")
    with torch.no_grad():
        plain.weight.copy_(torch.linspace(-1, 1, 6))
        plain.bias.copy_(torch.linspace(1, 2, 6))
    fused.load_state_dict(plain.state_dict())
    given = look_at_input(x)
    expected = percentiles_of(given, plain(x))
    for mode in (fused.train(), fused.train()):
        assert is_fused(mode, (x, residual), {})
        seen = percentiles_of(given, mode(x, residual), fused_in=mode)
        torch.testing.assert_close(seen, expected)
    frozen = fused.eval()
    plain.load_state_dict(frozen.state_dict())
    expected = percentiles_of(given, plain.eval()(x))
    torch.testing.assert_close(percentiles_of(given, frozen(x), fused_in=frozen), expected)


def test_the_lag_is_that_of_the_output_in_eval_mode():
    torch.manual_seed(0)
    x = torch.randn(40, 5, 3, 3) * 3 + 1
    layer = nn.BatchNorm2d(5, eps=1e-12)
    layer.running_mean.normal_()
    layer.running_var.uniform_(1, 4)
    ours, _ = lag_of(layer, x)
    # In eval mode a channel has mean (μ−m)/√r and deviation √(v/r) in place of 0 and 1.
    y = layer.eval()(x).detach().double().transpose(0, 1).flatten(1)
    expected = (y.mean(1) ** 2 + (y.std(1, correction=0) - 1) ** 2).mean().sqrt()
    assert ours == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
@pytest.mark.parametrize("places", [(), (4,)], ids=["dense", "places that repeat a row's value"])
def test_statistics_that_only_chance_moves_lag_by_chance(momentum, places):
    torch.manual_seed(1)
    layer, lags, by_chance = nn.BatchNorm1d(64, momentum=momentum), [], []
    for step in range(120):
        x = torch.randn(32, 64, *[1 for _ in places]).expand(32, 64, *places)
        if step > 60:
            both = lag_of(layer, x)
            lags.append(both[0])
            by_chance.append(both[1])
        layer(x)
    ratio = np.sqrt(np.square(lags).mean() / np.square(by_chance).mean())
    assert 0.9 < ratio < 1.1


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(3, track_running_stats=False), MaskedBatchNorm1d(3, default="all")],
    ids=["no running statistics", "a mask hides what the statistics are of"],
)
def test_a_lag_that_means_nothing_is_nan(layer):
    assert all(map(math.isnan, lag_of(layer, torch.randn(8, 3))))


def test_of_one_row_chance_is_not_known():
    off, by_chance = lag_of(nn.BatchNorm2d(3), torch.randn(1, 3, 4, 4))
    assert off > 0
    assert math.isnan(by_chance)


def test_channels_that_do_not_vary_do_not_count_as_drifting():
    before = np.array([[[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
    assert drift(before + 1, before) == pytest.approx(1.0365, rel=1e-3)
    assert np.isnan(drift(before + 1, before * 0)).all()
    assert np.isnan(drift(before, before * np.nan)).all()


def test_small_layers_side_by_side_have_the_numbers_of_each_alone():
    torch.manual_seed(0)
    layers = [nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(3)]
    inputs = [torch.randn(20, layer.num_features) * 3 + 1 for layer in layers]
    together, alone = Calls(), []
    for index, (layer, x) in enumerate(zip(layers, inputs, strict=True)):
        for calls in (together, Calls()):
            calls.begin(str(index), layer, x, fused=False)
            assert calls.end(str(index), x + index)
        alone += calls.seen()
    groups = together.seen()
    assert [channels.paths for channels in groups] == [("0", "1"), ("2",)]
    assert list(together.order) == ["0", "1", "2"]
    tables = [table for channels in groups for table in channels.table.unbind(1)]
    for ours, single in zip(tables, alone, strict=True):
        torch.testing.assert_close(ours, single.table[:, 0], equal_nan=True)


def test_a_median_leaves_out_what_is_nan():
    values = np.random.default_rng(0).normal(size=(4, 6, 7))
    values[0, 0], values[1, :, :3], values[2, 1, 4:] = np.nan, np.nan, np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the first, which is NaN throughout
        expected = np.nanmedian(values, axis=-2)
    np.testing.assert_allclose(typical(values), expected, rtol=1e-15)
