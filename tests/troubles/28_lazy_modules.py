"""Lazy modules have no shape before the first mini-batch."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)

model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU())
for verb in (bnkit.diagnose, bnkit.recalibrate, bnkit.fold):
    try:
        verb(model, torch.randn(8, 6))
    except ValueError as error:
        assert "is lazy and has no shape yet: run one mini-batch through it" in str(error)
    else:
        raise AssertionError(verb)
