"""One batch norm for the levels of a pyramid: it holds a mixture of them."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


class Levels(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(6, 8)
        self.norm = self.again = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        y = self.norm(self.first(x)).relu() + self.again(3 * self.second(x) + 5).relu()
        return self.out(y)


model, data = Levels(), [torch.randn(64, 6) for _ in range(8)]
for batch in data * 10:
    model(batch)
diagnosis = bnkit.diagnose(model.eval(), data, progress=False)
assert ("several-distributions", ("norm",)) in [(f.rule, f.layers) for f in diagnosis.findings]
fixed = diagnosis.fixed(model)
assert bnkit.diagnose(fixed, data, progress=False).at_least("warning") == ()
