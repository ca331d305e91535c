"""Averaging of models makes num_batches_tracked a float, or None."""

import torch
from situations import fed, net, rows

import bnkit

torch.manual_seed(0)

model = fed(net(), rows(20))
for counter in (torch.tensor(20.0), None):
    model[1].num_batches_tracked = counter
    bnkit.diagnose(model, rows(), progress=False)
    bnkit.recalibrate(model, rows())
    bnkit.fold(model, rows()[0])
    bnkit.convert(model, "ghost", virtual_batch_size=16)
