"""A mixer reshapes (time, feature) into one axis for batch norm: fold takes the right one."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


class Mixed(nn.Module):
    def __init__(self, steps, features):
        super().__init__()
        self.fc, self.norm = nn.Linear(3, features), nn.BatchNorm1d(steps * features)

    def forward(self, x):
        y = self.fc(x)
        return self.norm(y.flatten(1)).view_as(y)


for steps, features in ((5, 4), (1, 4), (4, 1)):
    model, data = Mixed(steps, features), [torch.randn(32, steps, 3) + 1 for _ in range(6)]
    for batch in data:
        model(batch)
    folded = bnkit.surgery.plan_folding(model.eval(), data[0]).apply(model)
    torch.testing.assert_close(folded(data[0]), model(data[0]), rtol=1e-4, atol=1e-5)
