"""Complex networks put batch norm on the real and the imaginary part."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.real, self.imaginary = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.mix = nn.Linear(4, 4, dtype=torch.complex64)

    def forward(self, z):
        z = self.mix(z)
        return torch.complex(self.real(z.real), self.imaginary(z.imag))


model = Complex()
batches = [torch.randn(32, 4, dtype=torch.complex64) + 2 for _ in range(5)]
model = bnkit.recalibrate(model, batches)
with torch.no_grad():
    values = torch.cat([model.mix(batch) for batch in batches])
torch.testing.assert_close(model.real.running_mean, values.real.mean(0))
torch.testing.assert_close(model.imaginary.running_var, values.imag.var(0))
