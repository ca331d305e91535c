"""A moving average of the parameters, with and without the buffers."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import bnkit

torch.manual_seed(0)


def net(width=8, norm=nn.BatchNorm1d):
    return nn.Sequential(nn.Linear(6, width), norm(width), nn.ReLU(), nn.Linear(width, 3))


def rows(number=8, *, shift=0.0, scale=1.0, count=64):
    return [scale * torch.randn(count, 6) + shift for _ in range(number)]


data = rows(shift=2.0, scale=2.0)
for use_buffers in (False, True):
    model = net()
    average = AveragedModel(model, use_buffers=use_buffers)
    for batch in data * 8:
        model(batch)
        average.update_parameters(model)
    exact = bnkit.recalibrate(average, data)
    with torch.no_grad():
        values = torch.cat([average.module[0](batch) for batch in data])
    torch.testing.assert_close(exact.module[1].running_var, values.var(0), rtol=1e-5, atol=1e-6)
