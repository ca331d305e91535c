"""A batch norm of a normalising flow: own class, own names, momentum is the share that is kept."""

import torch
from situations import fed, found, net, rows
from torch import nn

import bnkit

torch.manual_seed(0)


class FlowNorm(nn.Module):
    def __init__(self, features, momentum=0.9):
        super().__init__()
        self.momentum, self.eps = momentum, 1e-5
        self.log_gamma = nn.Parameter(torch.zeros(features))
        self.beta = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x):
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = x.mean(0), x.var(0)
            for average, new in ((self.running_mean, mean), (self.running_var, variance)):
                average.mul_(self.momentum).add_(new.detach(), alpha=1 - self.momentum)
        return (x - mean) / (variance + self.eps).sqrt() * self.log_gamma.exp() + self.beta


model = fed(net(norm=FlowNorm), rows(80, shift=1.0)).eval()
assert found(model, rows(shift=1.0)) == set()
off = bnkit.diagnose(model, rows(shift=5.0, scale=3.0), progress=False).at_least("warning")
assert any(each.layers == ("1",) for each in off)
assert not any(
    "bnkit.recalibrate(model, batches)" in each.fix for each in off
) or bnkit.recalibrate(model, rows())
