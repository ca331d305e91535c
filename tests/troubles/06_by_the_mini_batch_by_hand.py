"""A class normalises by the mini-batch with its own arithmetic, whatever the mode."""

import torch
from situations import fed, found, net, rows
from torch import nn

torch.manual_seed(0)


class ByHand(nn.BatchNorm1d):
    def forward(self, x):
        return (x - x.mean(0)) / (x.var(0) + self.eps).sqrt() * self.weight + self.bias


model = fed(net(norm=ByHand), rows(4)).eval()
assert ("training-mode-export", "1") in found(model, rows())
