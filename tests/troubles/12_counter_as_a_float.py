"""Averaging of models makes num_batches_tracked a float, or None."""

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


model = fed(net(), rows(20))
for counter in (torch.tensor(20.0), None):
    model[1].num_batches_tracked = counter
    bnkit.diagnose(model, rows(), progress=False)
    bnkit.recalibrate(model, rows())
    bnkit.fold(model, rows()[0])
    bnkit.convert(model, "ghost", virtual_batch_size=16)
