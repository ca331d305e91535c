"""F.batch_norm with buffers of the user's own: eval mode is far off, in silence."""

import torch
import torch.nn.functional as F
from situations import fed, found, net, rows
from torch import nn

torch.manual_seed(0)


class OfFunctions(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.register_buffer("mu", torch.zeros(features))
        self.register_buffer("sigma2", torch.ones(features))

    def forward(self, x):
        return F.batch_norm(x, self.mu, self.sigma2, training=self.training)


model = fed(net(norm=OfFunctions), rows(40)).eval()
assert found(model, rows()) == set()
assert ("train-eval-gap", "1") in found(model, rows(shift=5.0, scale=3.0))
