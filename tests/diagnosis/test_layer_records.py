"""A diagnosis holds each batch norm in plain numbers, of which the oracle is torch."""

import json
from dataclasses import astuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnkit.diagnosis import diagnose
from bnkit.layers.domains import DomainBatchNorm1d


def batches(number=4):
    torch.manual_seed(1)
    return [torch.randn(64, 3) * 2 + 1 for _ in range(number)]


def layers_of(model, data=None, **options):
    return diagnose(model, data, progress=False, **options).layers


def test_statistics_of_the_mini_batches_are_compared_with_the_running_ones():
    norm = nn.BatchNorm1d(3).double().eval()
    norm.running_mean.copy_(torch.tensor([0.0, 1.0, 2.0]))
    norm.running_var.copy_(torch.tensor([1.0, 4.0, 9.0]))
    data = [batch.double() for batch in batches()]
    (found,) = layers_of(norm, data)
    everything = torch.cat(data)
    shift = (everything.mean(0) - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    ratio = (everything.var(0, correction=0) + norm.eps) / (norm.running_var + norm.eps)
    levels = torch.tensor([0.0, 0.15, 0.5, 0.85, 1.0], dtype=torch.float64)
    assert astuple(found.mean_shift) == pytest.approx(torch.quantile(shift, levels).tolist())
    assert astuple(found.variance_ratio) == pytest.approx(torch.quantile(ratio, levels).tolist())
    assert (found.channels, found.values, found.kind) == (3, 256, "BatchNorm1d")


def test_of_a_first_layer_the_differences_are_those_of_the_rule():
    norm = nn.BatchNorm1d(3).eval()
    found = diagnose(norm, batches(), progress=False)
    (stale,) = (f for f in found.findings if f.rule == "stale-statistics")
    (layer,) = found.layers
    assert layer.own_difference == pytest.approx(stale.measured["output change"])
    assert layer.difference == pytest.approx(layer.own_difference)
    assert layer.tolerance == pytest.approx(stale.measured["threshold"])


def test_a_well_layer_after_a_sick_one_differs_by_what_came_before_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 5), nn.BatchNorm1d(5))
    model[0].momentum = model[2].momentum = None  # the mean of all mini-batches
    for batch in batches():
        model(batch)
    model[0].running_mean += 5
    first, second = layers_of(model.eval(), batches())
    assert (first.layer, second.layer) == ("0", "2")
    assert first.own_difference > 1
    assert second.own_difference < 0.05
    assert second.difference > 1


def test_a_frozen_layer_parts_nothing_by_itself():
    model = nn.Sequential(nn.BatchNorm1d(3).eval())
    model.training = True  # so the layer trains by its running statistics
    (found,) = layers_of(model, batches())
    assert found.own_difference == 0
    assert found.mean_shift.highest > 0.5


def test_dead_and_collapsed_channels_are_counted():
    norm = nn.BatchNorm1d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, 1.0, -2.0]))
    data = [batch * torch.tensor([1.0, 1.0, 1e-6]) for batch in batches()]
    (found,) = layers_of(norm, data)
    assert (found.dead, found.collapsed) == (1, 1)
    assert (found.gamma.lowest, found.gamma.median, found.gamma.highest) == (-2, 0, 1)


def test_layers_are_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first, self.never = (nn.BatchNorm1d(3) for _ in range(3))

        def forward(self, x):
            return self.last(self.first(x))

    assert [found.layer for found in layers_of(Backwards(), batches())] == [
        "first",
        "last",
        "never",
    ]


def test_a_model_that_was_not_run_has_what_can_be_read_off_it():
    (found,) = layers_of(nn.Sequential(nn.BatchNorm1d(3)))
    assert (found.channels, found.dead, found.gamma.median) == (3, 0, 1.0)
    assert (found.mean_shift, found.own_difference, found.difference) == (None, None, None)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.variance, training=self.training)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(nn.BatchNorm1d(3, affine=False), id="no γ"),
        pytest.param(nn.BatchNorm1d(3, track_running_stats=False), id="no running statistics"),
        pytest.param(DomainBatchNorm1d(3, domains=["day", "night"]), id="per domain"),
        pytest.param(Functional(), id="a function"),
        pytest.param(nn.BatchNorm1d(7), id="fails on the mini-batches"),
    ],
)
def test_an_unusual_layer_has_its_record_which_json_can_hold(model):
    found = diagnose(model, batches(), progress=False)
    assert len(found.layers) == len(getattr(model, "domains", [""]))
    plain = found.to_json()["layers"]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_nan_in_the_state_leaves_numbers_out_and_breaks_nothing():
    norm = nn.BatchNorm1d(3).eval()
    norm.running_mean[0] = torch.nan
    (found,) = layers_of(norm, batches())
    assert found.own_difference is None
    assert found.mean_shift is not None  # of the other channels
