"""Ported weights lie in the wrong slots: mean and variance swapped, a negative variance."""

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


data = rows(shift=3.0, scale=2.0)
for swap in (("running_mean", "running_var"), ("weight", "bias")):
    model = fed(net(), data * 10)
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2.0)
        first, second = (getattr(model[1], name) for name in swap)
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)
    bad = found(model.eval(), data)
    assert any(layer == "1" for _, layer in bad), swap
model[1].running_var[0] = -1.0
assert ("non-finite", "1") in found(model, data)
