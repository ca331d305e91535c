"""Adversarial propagation gives each domain a batch norm with gamma and beta of its own."""

import torch
from situations import net

import bnkit

torch.manual_seed(0)

model = bnkit.convert(net(), "domains", domains=("clean", "adversarial"), affine="each")
parameters = [name for name, _ in model[1].named_parameters()]
assert len(parameters) == 4, parameters
