"""Gamma is pruned by a mask, or kept positive by a parametrisation."""

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import bnkit

torch.manual_seed(0)


def net(width=8, norm=nn.BatchNorm1d):
    return nn.Sequential(nn.Linear(6, width), norm(width), nn.ReLU(), nn.Linear(width, 3))


def rows(number=8, *, shift=0.0, scale=1.0, count=64):
    return [scale * torch.randn(count, 6) + shift for _ in range(number)]


class Positive(nn.Module):
    def forward(self, value):
        return nn.functional.softplus(value)


for change in (
    lambda layer: parametrize.register_parametrization(layer, "weight", Positive()),
    lambda layer: prune.random_unstructured(layer, "weight", 0.5),
):
    model = net()
    change(model[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    decayed = bnkit.diagnose(model, optimizer=optimizer, progress=False).at_least("warning")
    assert [(each.rule, each.layers) for each in decayed] == [("weight-decay", ("1",))]
    assert decayed[0].measured["parameters"] == 2
    groups = bnkit.parameter_groups(model, weight_decay=0.1)
    spared = {id(p) for p in groups[1]["params"]}
    assert {id(p) for p in model[1].parameters()} <= spared
    plan = bnkit.surgery.plan_folding(model.eval(), rows()[0])
    assert plan.edits == ()
