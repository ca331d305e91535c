"""Adversarial propagation gives each domain a batch norm with gamma and beta of its own."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


def net(width=8, norm=nn.BatchNorm1d):
    return nn.Sequential(nn.Linear(6, width), norm(width), nn.ReLU(), nn.Linear(width, 3))


model = bnkit.convert(net(), "domains", domains=("clean", "adversarial"), affine="each")
parameters = [name for name, _ in model[1].named_parameters()]
assert len(parameters) == 4, parameters
