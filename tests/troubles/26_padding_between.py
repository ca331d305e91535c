"""Zero padding between batch norm and conv must not be folded through; reflection may be."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)

for padding, mode in (
    (0, "zeros"),
    (1, "zeros"),
    (1, "reflect"),
    (1, "replicate"),
    (1, "circular"),
):
    conv = nn.Conv2d(8, 4, 3, padding=padding, padding_mode=mode)
    model = nn.Sequential(nn.BatchNorm2d(8), conv)
    data = [2 * torch.randn(8, 8, 6, 6) + 3 for _ in range(6)]
    for batch in data:
        model(batch)
    folded = bnkit.surgery.plan_folding(model.eval(), data[0]).apply(model)
    torch.testing.assert_close(folded(data[0]), model(data[0]), rtol=1e-4, atol=1e-5)
    kept = any(isinstance(each, nn.BatchNorm2d) for each in folded.modules())
    assert kept is (padding > 0 and mode == "zeros")
