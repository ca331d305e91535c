"""A model that caches what it computed cannot be deep-copied."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


def net(width=8, norm=nn.BatchNorm1d):
    return nn.Sequential(nn.Linear(6, width), norm(width), nn.ReLU(), nn.Linear(width, 3))


def rows(number=8, *, shift=0.0, scale=1.0, count=64):
    return [scale * torch.randn(count, 6) + shift for _ in range(number)]


def fed(model, batches):
    for batch in batches:
        model(batch)
    return model


class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.last = net(), None

    def forward(self, x):
        self.last = self.body(x)
        return self.last


model = fed(Caching(), rows(30))
bnkit.diagnose(model, rows(), progress=False)
again = bnkit.recalibrate(model, rows())
folded = bnkit.fold(model, rows()[0])
torch.testing.assert_close(folded.eval()(rows()[0]).shape, again.eval()(rows()[0]).shape)
