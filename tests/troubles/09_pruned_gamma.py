"""Channels whose gamma was pruned to 0 still hand on a large beta."""

import torch
from situations import fed, net, rows

import bnkit

torch.manual_seed(0)

model = fed(net(), rows(60)).eval()
with torch.no_grad():
    model[1].weight[:6] = 0
    model[1].bias[:6] = 4
diagnosis = bnkit.diagnose(model, rows(), progress=False)
dead = next(each for each in diagnosis.findings if each.rule == "dead-channels")
assert (dead.layers, dead.measured["channels"]) == (("1",), 6)
