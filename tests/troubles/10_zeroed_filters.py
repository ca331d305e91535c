"""Filters were set to zero, and what batch norm makes of them is not zero."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)

model = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)
)
data = [torch.randn(16, 3, 8, 8) for _ in range(6)]
with torch.no_grad():
    model[0].weight[:5] = 0
for batch in data * 20:
    model(batch)
diagnosis = bnkit.diagnose(model.eval(), data, progress=False)
(collapsed,) = (each for each in diagnosis.findings if each.rule == "collapsed-variance")
assert (collapsed.layers, collapsed.measured["channels"]) == (("1",), 5)
