"""Momentum 0 is left over from weight averaging, the statistics are still 0 and 1."""

import torch
from situations import fed, found, net, rows

import bnkit

torch.manual_seed(0)

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
