"""The target network of Q-learning gets the parameters and not the buffers."""

import torch
from situations import fed, found, net, rows

import bnkit

torch.manual_seed(0)

online = fed(net(), rows(60, shift=4.0, scale=3.0)).eval()
target = net().eval()
for new, old in zip(target.parameters(), online.parameters(), strict=False):
    new.data.copy_(old.data)
data = rows(shift=4.0, scale=3.0)
assert ("never-updated", "1") in found(target, data)
recalibrated = bnkit.recalibrate(target, data)
before, after = ((each(data[0]) - online(data[0])).norm() for each in (target, recalibrated))
assert after < 0.3 * before
