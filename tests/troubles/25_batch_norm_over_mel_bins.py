"""Audio nets normalise mel bins by a transposition around batch norm."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


class Mel(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(16), nn.Conv2d(1, 4, 3)

    def forward(self, x):  # (N, 1, time, mel)
        return self.conv(self.norm(x.transpose(1, 3)).transpose(1, 3))


model, data = Mel(), [3 * torch.randn(8, 1, 20, 16) + 1 for _ in range(6)]
for batch in data:
    model(batch)
model.eval()
assert bnkit.surgery.plan_folding(model, data[0]).edits == ()
removed = bnkit.remove(model, data[0])
for example in (data[0], torch.randn(2, 1, 9, 16)):
    torch.testing.assert_close(removed(example), model(example), rtol=1e-4, atol=1e-5)
