"""A forward set on an instance closes over the original: a copy runs that."""

import copy

import torch
from situations import fed, net, rows
from torch import nn

import bnkit

torch.manual_seed(0)

model = fed(net(), rows(40))
inner = model[1].forward
model[1].forward = lambda x: inner(x.float())
state = copy.deepcopy(model.state_dict())
new = rows(shift=2.0, scale=3.0)
for verb in (bnkit.diagnose, bnkit.recalibrate):
    try:
        result = verb(model, new, progress=False)
    except (TypeError, ValueError):
        result = None
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    if isinstance(result, nn.Module):
        values = torch.cat([result[0](batch) for batch in new]).mean(0)
        torch.testing.assert_close(result[1].running_mean, values, rtol=1e-4, atol=1e-5)
