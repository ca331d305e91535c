"""A forward set on an instance closes over the original: a copy runs that."""

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


model = fed(net(), rows(40))
inner = model[1].forward
model[1].forward = lambda x: inner(x.float())
state = copy.deepcopy(model.state_dict())
new = rows(shift=2.0, scale=3.0)
for verb in (bnkit.diagnose, bnkit.recalibrate):
    try:
        result = verb(model, new, progress=False)
    except (TypeError, ValueError):
        result = None
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    if isinstance(result, nn.Module):
        values = torch.cat([result[0](batch) for batch in new]).mean(0)
        torch.testing.assert_close(result[1].running_mean, values, rtol=1e-4, atol=1e-5)
