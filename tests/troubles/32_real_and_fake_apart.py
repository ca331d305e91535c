"""A discriminator sees real and fake examples in calls of their own."""

import torch
from situations import found, net, rows
from torch import nn

import bnkit

torch.manual_seed(0)


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
