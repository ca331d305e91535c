"""Ported weights lie in the wrong slots: mean and variance swapped, a negative variance."""

import torch
from situations import fed, found, net, rows

torch.manual_seed(0)

data = rows(shift=3.0, scale=2.0)
for swap in (("running_mean", "running_var"), ("weight", "bias")):
    model = fed(net(), data * 10)
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2.0)
        first, second = (getattr(model[1], name) for name in swap)
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)
    bad = found(model.eval(), data)
    assert any(layer == "1" for _, layer in bad), swap
model[1].running_var[0] = -1.0
assert ("non-finite", "1") in found(model, data)
