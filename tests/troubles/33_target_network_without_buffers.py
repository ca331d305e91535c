"""The target network of Q-learning gets the parameters and not the buffers."""

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


online = fed(net(), rows(60, shift=4.0, scale=3.0)).eval()
target = net().eval()
for new, old in zip(target.parameters(), online.parameters(), strict=False):
    new.data.copy_(old.data)
data = rows(shift=4.0, scale=3.0)
assert ("never-updated", "1") in found(target, data)
recalibrated = bnkit.recalibrate(target, data)
before, after = ((each(data[0]) - online(data[0])).norm() for each in (target, recalibrated))
assert after < 0.3 * before
