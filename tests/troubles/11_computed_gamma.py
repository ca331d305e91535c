"""Gamma is pruned by a mask, or kept positive by a parametrisation."""

import torch
from situations import net, rows
from torch import nn
from torch.nn.utils import parametrize, prune

import bnkit

torch.manual_seed(0)


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
