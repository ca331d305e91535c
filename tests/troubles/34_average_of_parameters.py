"""A moving average of the parameters, with and without the buffers."""

import torch
from situations import net, rows
from torch.optim.swa_utils import AveragedModel

import bnkit

torch.manual_seed(0)

data = rows(shift=2.0, scale=2.0)
for use_buffers in (False, True):
    model = net()
    average = AveragedModel(model, use_buffers=use_buffers)
    for batch in data * 8:
        model(batch)
        average.update_parameters(model)
    exact = bnkit.recalibrate(average, data)
    with torch.no_grad():
        values = torch.cat([average.module[0](batch) for batch in data])
    torch.testing.assert_close(exact.module[1].running_var, values.var(0), rtol=1e-5, atol=1e-6)
