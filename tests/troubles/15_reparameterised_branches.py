"""Three branches with batch norm are merged by hand, and the result differs."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.narrow = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.identity = nn.BatchNorm2d(8)

    def forward(self, x):
        return (self.wide(x) + self.narrow(x) + self.identity(x)).relu()


model, data = Block(), [2 * torch.randn(16, 8, 6, 6) + 1 for _ in range(8)]
for batch in data:
    model(batch)
model = model.double().eval()
example = data[0].double()
folded = bnkit.fold(model, example)
removed = bnkit.remove(model, example)
for changed in (folded, removed):
    torch.testing.assert_close(changed(example), model(example), rtol=1e-12, atol=1e-12)
assert not [each for each in removed.modules() if isinstance(each, nn.BatchNorm2d)]
