import math

import pytest
import torch
from torch import nn

from bnkit.layers import (
    BatchNorm1d,
    BatchNormLSTM,
    BatchRenorm1d,
    DomainBatchNorm1d,
    FrozenBatchNorm1d,
    GhostBatchNorm1d,
    MaskedBatchNorm1d,
)
from bnkit.monitoring import Monitor
from models import MODELS
from zoo.checks import call, random_state

NORMALISED = [
    model
    for model in MODELS
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.seeded().modules())
]


def trained(model, example, *, monitored):
    """Run two forwards and backwards; return the outputs and what they left behind."""
    torch.manual_seed(1)
    monitor = Monitor(model, every=1) if monitored else None
    outputs = [call(model, example) for _ in range(2)]
    loss = sum(output.float().sum() for tensors in outputs for output in tensors)
    if loss.requires_grad:
        loss.backward()
    if monitor:
        monitor.close()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    hooks = [(*m._forward_hooks, *m._forward_pre_hooks) for m in model.modules()]
    left = [random_state(), hooks, {n: t.tolist() for n, t in model.named_buffers()}]
    given = [output for tensors in outputs for output in tensors]
    return [*given, *gradients], left, monitor


@pytest.mark.parametrize("model", NORMALISED, ids=str)
def test_awkward_models_train_the_same_and_are_recorded(model):
    plain, left, _ = trained(model.seeded().train(), model.example(), monitored=False)
    seen, left_too, monitor = trained(model.seeded().train(), model.example(), monitored=True)
    assert all(map(torch.equal, plain, seen))
    assert left == left_too
    assert {record.step for record in monitor.records} == {0, 1}


@pytest.mark.parametrize(
    "norm",
    [
        BatchNorm1d(3, activation="relu"),
        BatchRenorm1d(3),
        FrozenBatchNorm1d(3),
        GhostBatchNorm1d(3, 4),
        DomainBatchNorm1d(3, domains=["day", "night"]),
        MaskedBatchNorm1d(3, default="all"),
        nn.LazyBatchNorm1d(),
        nn.BatchNorm1d(3, track_running_stats=False, affine=False),
        nn.BatchNorm1d(3, dtype=torch.bfloat16),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_each_kind_is_recorded(norm):
    model = nn.Sequential(norm)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    with Monitor(model, every=1) as monitor:
        model(torch.randn(8, 3, dtype=dtype))
    (record,) = monitor.records
    assert not any(map(math.isnan, (*record.input, *record.output, record.never_positive)))


def test_a_recurrent_layer_is_recorded_or_named():
    model = BatchNormLSTM(3, 5, max_steps=6)
    with Monitor(model, every=1) as monitor:
        model(torch.randn(4, 6, 3))
    named = {record.layer for record in monitor.records}
    assert all(path in named or repr(path) in str(monitor) for path in monitor._layers)
