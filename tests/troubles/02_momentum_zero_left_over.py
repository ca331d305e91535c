"""Momentum 0 is left over from weight averaging, the statistics are still 0 and 1."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


def net(width=8, norm=nn.BatchNorm1d):
    return nn.Sequential(nn.Linear(6, width), norm(width), nn.ReLU(), nn.Linear(width, 3))


def rows(number=8, *, shift=0.0, scale=1.0, count=64):
    return [scale * torch.randn(count, 6) + shift for _ in range(number)]


def fed(model, batches):
    for batch in batches:
        model(batch)
    return model


def found(model, batches=None, severity="warning", **options):
    diagnosis = bnkit.diagnose(model, batches, progress=False, **options)
    return {(each.rule, layer) for each in diagnosis.at_least(severity) for layer in each.layers}


model = net()
model[1].momentum = 0.0
data = rows(shift=2.0, scale=3.0)
fed(model, data).eval()
diagnosis = bnkit.diagnose(model, data, progress=False)
never = next(each for each in diagnosis.findings if each.rule == "never-updated")
assert never.layers == ("1",)
assert never.measured["momentum"] == 0
assert "bnkit.recalibrate(model, batches)" not in never.fix
assert found(diagnosis.fixed(model), data) == set()
