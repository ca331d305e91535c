"""NaN in eval mode only, under autocast: an activation before batch norm leaves the range."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


class Large(nn.Module):
    def forward(self, x):
        return (x.to(torch.float16) * 60000).float()


model = nn.Sequential(
    nn.Linear(6, 8), Large(), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)
).eval()
found = bnkit.diagnose(model, [4 * torch.randn(32, 6)], progress=False).at_least("error")
assert ("non-finite", ("2",)) in [(each.rule, each.layers) for each in found]
