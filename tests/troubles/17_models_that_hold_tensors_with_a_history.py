"""A model that caches what it computed cannot be deep-copied."""

import torch
from situations import fed, net, rows
from torch import nn

import bnkit

torch.manual_seed(0)


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
