"""A discriminator sees real and fake examples in calls of their own."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


def net(width=8, norm=nn.BatchNorm1d):
    return nn.Sequential(nn.Linear(6, width), norm(width), nn.ReLU(), nn.Linear(width, 3))


def rows(number=8, *, shift=0.0, scale=1.0, count=64):
    return [scale * torch.randn(count, 6) + shift for _ in range(number)]


def found(model, batches=None, severity="warning", **options):
    diagnosis = bnkit.diagnose(model, batches, progress=False, **options)
    return {(each.rule, layer) for each in diagnosis.at_least(severity) for layer in each.layers}


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, real, fake):
        return self.body(real) - self.body(fake)


data = [{"real": real, "fake": 3 * real + 4} for real in rows()]
assert ("several-distributions", "body.1") in found(Discriminator(), data)
apart = bnkit.convert(Discriminator(), "domains", domains=("real", "fake"))
for name in ("real", "fake"):
    with bnkit.domain(apart, name):
        bnkit.recalibrate_(apart.body, [batch[name] for batch in data])
real, fake = (apart.body[1].get_buffer(name) for name in ("running_mean", "running_mean_fake"))
assert (real - fake).abs().max() > 1
