"""Weights of several models are averaged, the statistics are those of one."""

import copy

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


models = [fed(net(), rows(40)) for _ in range(3)]
soup = copy.deepcopy(models[0]).eval()
with torch.no_grad():
    parts = zip(*(each.parameters() for each in (soup, *models)), strict=True)
    for mean, *others in parts:
        mean.copy_(sum(others) / len(others))
data = rows()
assert ("stale-statistics", "1") in found(soup, data)
exact = bnkit.recalibrate(soup, data)
with torch.no_grad():
    values = torch.cat([soup[0](batch) for batch in data])
torch.testing.assert_close(exact[1].running_mean, values.mean(0), rtol=1e-5, atol=1e-6)
torch.testing.assert_close(exact[1].running_var, values.var(0), rtol=1e-5, atol=1e-6)
