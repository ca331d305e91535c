"""Channels whose gamma was pruned to 0 still hand on a large beta."""

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


model = fed(net(), rows(60)).eval()
with torch.no_grad():
    model[1].weight[:6] = 0
    model[1].bias[:6] = 4
diagnosis = bnkit.diagnose(model, rows(), progress=False)
dead = next(each for each in diagnosis.findings if each.rule == "dead-channels")
assert (dead.layers, dead.measured["channels"]) == (("1",), 6)
