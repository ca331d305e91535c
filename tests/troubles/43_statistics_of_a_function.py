"""F.batch_norm with buffers of the user's own: eval mode is far off, in silence."""

import torch
import torch.nn.functional as F
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


def found(model, batches=None, severity="warning", **options):
    diagnosis = bnkit.diagnose(model, batches, progress=False, **options)
    return {(each.rule, layer) for each in diagnosis.at_least(severity) for layer in each.layers}


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
