"""momentum=None under a full graph of the compiler."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)

for kind in ("bnkit", "ghost"):
    options = {"virtual_batch_size": 16} if kind == "ghost" else {}
    model = bnkit.convert(nn.Sequential(nn.BatchNorm1d(6, momentum=None)), kind, **options)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    twin = bnkit.convert(nn.Sequential(nn.BatchNorm1d(6, momentum=None)), kind, **options)
    for _ in range(3):
        x = 2 * torch.randn(64, 6) + 1
        torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(model[0].running_var, twin[0].running_var)
