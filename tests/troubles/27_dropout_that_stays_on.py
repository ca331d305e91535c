"""Dropout is always on (Monte Carlo dropout), in eval mode too."""

import torch
import torch.nn.functional as F
from torch import nn

import bnkit

torch.manual_seed(0)


class AlwaysOn(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.3, training=True)


model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), AlwaysOn(), nn.Linear(8, 2))
data = [torch.randn(64, 6) for _ in range(8)]
for batch in data * 8:
    model(batch)
folded = bnkit.fold(model.eval(), data[0])
torch.manual_seed(1)
expected = model(data[0])
torch.manual_seed(1)
torch.testing.assert_close(folded(data[0]), expected, rtol=1e-4, atol=1e-5)
assert not torch.equal(folded(data[0]), folded(data[0]))
assert "dropout-before" not in [
    f.rule for f in bnkit.diagnose(model, data, progress=False).findings
]
