"""Adapters are saved and loaded, the buffers of batch norm are not: eval mode is off."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


def net(width=8, norm=nn.BatchNorm1d):
    return nn.Sequential(nn.Linear(6, width), norm(width), nn.ReLU(), nn.Linear(width, 3))


def rows(number=8, *, shift=0.0, scale=1.0, count=64):
    return [scale * torch.randn(count, 6) + shift for _ in range(number)]


def fed(model, batches):
    for batch in batches:
        model(batch)
    return model


def found(model, batches=None, severity="warning", **options):
    diagnosis = bnkit.diagnose(model, batches, progress=False, **options)
    return {(each.rule, layer) for each in diagnosis.at_least(severity) for layer in each.layers}


base = fed(net(), rows(60)).eval()
tuned = fed(net().train(), rows(60, shift=3.0, scale=2.0))
tuned.load_state_dict({**tuned.state_dict(), **dict(base.named_buffers())})
new = rows(shift=3.0, scale=2.0)
assert ("stale-statistics", "1") in found(tuned.eval(), new)
assert found(bnkit.recalibrate(tuned, new), new) == set()
frozen = bnkit.convert(base, "frozen")
torch.testing.assert_close(frozen.eval()(new[0]), base(new[0]))
