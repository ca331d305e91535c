"""A model is fused a second time; the fused bias must train."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
data = [torch.randn(8, 3, 6, 6) for _ in range(10)]
for batch in data:
    model(batch)
once = bnkit.fold(model.eval(), data[0])
assert all(parameter.requires_grad for parameter in once.parameters())
try:
    twice = bnkit.fold(once, data[0])
except ValueError as error:
    assert "no batch norm" in str(error)
else:
    torch.testing.assert_close(twice(data[0]), once(data[0]))
