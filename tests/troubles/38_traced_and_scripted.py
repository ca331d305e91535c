"""What is deployed is traced by fx, exported, and scripted."""

import warnings

import torch
from torch import nn

import bnkit

torch.manual_seed(0)

warnings.simplefilter("ignore")
model = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)
)
data = [2 * torch.randn(16, 3, 8, 8) + 1 for _ in range(6)]
for batch in data:
    model(batch)
model.eval()
for shipped in (bnkit.remove(model, data[0]), bnkit.standardize(model, data)):
    expected = shipped.eval()(data[0])
    for how in (torch.fx.symbolic_trace, torch.jit.script):
        torch.testing.assert_close(how(shipped)(data[0]), expected, rtol=1e-5, atol=1e-5)
    program = torch.export.export(shipped, (data[0],))
    torch.testing.assert_close(program.module()(data[0]), expected, rtol=1e-5, atol=1e-5)
