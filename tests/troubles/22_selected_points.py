"""Of the points of a cloud those are normalised that are selected, sometimes one."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


class Selected(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, points):
        return self.norm(points[points[:, 0] > 0]).sum(0)


def points(selected):
    cloud = torch.randn(32, 5)
    cloud[:, 0] = torch.where(torch.arange(32) < selected, 1.0, -1.0)
    return cloud


found = bnkit.diagnose(Selected(), [points(n) for n in (9, 14, 1)], progress=False).findings
assert ("one-value-per-channel", "error", ("norm",)) in [
    (each.rule, each.severity, each.layers) for each in found
]
