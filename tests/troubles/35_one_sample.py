"""A prediction for a single sample, adapted to it with a prior."""

import torch
from situations import fed, net, rows

import bnkit

torch.manual_seed(0)

model = fed(net(), rows(60, shift=2.0)).eval()
x = torch.randn(1, 6)
old = model[1].running_mean.clone()
with torch.no_grad(), bnkit.adapted(model, x, prior=16):
    mixed = model[1].running_mean.clone()
torch.testing.assert_close(mixed, (16 * old + model[0](x).detach()[0]) / 17, rtol=1e-5, atol=1e-6)
assert torch.equal(model[1].running_mean, old)
try:
    bnkit.adapt(model, x, prior=0)
except ValueError as error:
    assert "1 value per channel" in str(error)
else:
    raise AssertionError("one row has no variance")
