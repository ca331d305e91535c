"""What many of the programs of this folder begin with: a small network, its data, a diagnosis."""

import torch
from torch import nn

import bnkit


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
