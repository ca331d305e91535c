"""Weights of several models are averaged, the statistics are those of one."""

import copy

import torch
from situations import fed, found, net, rows

import bnkit

torch.manual_seed(0)

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
