"""Federated averaging of the parameters only: each client keeps its own statistics."""

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


clients = [rows(30, shift=shift) for shift in (-4.0, 4.0)]
model = fed(net(), clients[0]).eval()
both = [*clients[0][:8], *clients[1][:8]]
assert {("stale-statistics", "1"), ("several-distributions", "1")} <= found(model, both)
pooled = bnkit.recalibrate(model, both)
with torch.no_grad():
    values = torch.cat([model[0](batch) for batch in both])
torch.testing.assert_close(pooled[1].running_mean, values.mean(0), rtol=1e-4, atol=1e-5)
torch.testing.assert_close(pooled[1].running_var, values.var(0), rtol=1e-4, atol=1e-5)
