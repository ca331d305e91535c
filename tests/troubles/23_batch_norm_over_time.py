"""BatchNorm1d(steps) after a dense or recurrent layer normalises time steps, not features."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)

model = nn.Sequential(
    nn.Linear(12, 16), nn.BatchNorm1d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 6)
)
data = [torch.randn(20, 32, 12) for _ in range(6)]
(finding,) = (
    f for f in bnkit.diagnose(model, data, progress=False).findings if f.rule == "wrong-axis"
)
assert finding.layers == ("1", "0")
shorter = [*data, torch.randn(20, 24, 12)]
errors = bnkit.diagnose(model, shorter, progress=False).at_least("error")
assert ("wrong-axis", 7) in [(e.rule, e.measured.get("fails on mini-batch")) for e in errors]
