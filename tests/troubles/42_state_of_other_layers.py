"""Other layers keep state in training mode (spectral norm, codes): measuring must not touch it."""

import copy

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import bnkit

torch.manual_seed(0)


class Codes(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.zeros(6))

    def forward(self, x):
        if self.training:
            self.codes.lerp_(x.detach().mean(0), 0.1)
        return x - self.codes


model = nn.Sequential(Codes(), spectral_norm(nn.Linear(6, 8)), nn.BatchNorm1d(8), nn.Linear(8, 2))
data = [torch.randn(32, 6) + 2 for _ in range(6)]
for batch in data:
    model(batch)
state = copy.deepcopy(model.state_dict())
bnkit.diagnose(model, data, progress=False)
bnkit.recalibrate_(model, data)
changed = [n for n, value in model.state_dict().items() if not torch.equal(value, state[n])]
assert {name.rpartition(".")[0] for name in changed} == {"2"}
