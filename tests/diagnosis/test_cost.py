"""What a diagnosis of 50 layers costs, in forward passes of the given mini-batches."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnkit
from bnkit.diagnosis import diagnose
from resnets import resnet50

ROWS = (12, 14, 16)  # each mini-batch has its own, by which its forwards are counted
CONVOLUTIONS = 53


def labelled():
    return [(torch.randn(rows, 3, 32, 32), torch.randint(0, 10, (rows,))) for rows in ROWS]


def fresh(batches):  # noqa: ARG001  the others are measured on them
    return resnet50()


def well(batches):
    return bnkit.recalibrate(resnet50(), batches, progress=False).eval()


def sick(batches):
    """Return a network in which all rules that run something have something to look at."""
    model = well(batches)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 5
            module.momentum = 0.99
    head = nn.Sequential(model[-1], nn.BatchNorm1d(10))
    return nn.Sequential(*model[:-1], nn.Dropout(0.1), head).eval()


@pytest.fixture
def convolutions(monkeypatch):
    """Count the calls of convolutions by the rows that they are given."""
    calls = Counter()

    def forward(self, x, plain=nn.Conv2d.forward):
        calls[len(x)] += 1
        return plain(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    return calls


@pytest.mark.parametrize(("build", "is_sick"), [(fresh, False), (well, False), (sick, True)])
def test_fifty_layers_cost_at_most_ten_forwards_of_each_mini_batch(build, is_sick, convolutions):
    torch.manual_seed(0)
    batches = labelled()
    model = build(batches)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    convolutions.clear()
    found = diagnose(model, batches, optimizer=optimizer, loss=F.cross_entropy, progress=False)
    assert not found.not_run
    assert bool(found.at_least("warning")) is is_sick
    passes = {rows: number / CONVOLUTIONS for rows, number in convolutions.items()}
    assert set(passes) == {*ROWS}  # and of nothing else
    assert passes[ROWS[1]] == passes[ROWS[2]] == 3
    assert passes[ROWS[0]] <= 10  # it is the example, too


def test_one_mini_batch_costs_at_most_ten_forwards_too(convolutions):
    torch.manual_seed(0)
    batches = labelled()[:1]
    model = sick(batches)
    convolutions.clear()
    diagnose(model, batches, progress=False)
    assert sum(convolutions.values()) <= 10 * CONVOLUTIONS
