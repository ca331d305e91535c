"""Adapters are saved and loaded, the buffers of batch norm are not: eval mode is off."""

import torch
from situations import fed, found, net, rows

import bnkit

torch.manual_seed(0)

base = fed(net(), rows(60)).eval()
tuned = fed(net().train(), rows(60, shift=3.0, scale=2.0))
tuned.load_state_dict({**tuned.state_dict(), **dict(base.named_buffers())})
new = rows(shift=3.0, scale=2.0)
assert ("stale-statistics", "1") in found(tuned.eval(), new)
assert found(bnkit.recalibrate(tuned, new), new) == set()
frozen = bnkit.convert(base, "frozen")
torch.testing.assert_close(frozen.eval()(new[0]), base(new[0]))
