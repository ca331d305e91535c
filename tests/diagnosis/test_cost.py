"""What a diagnosis of 50 layers costs: forwards of the given mini-batches, copies of the model."""

import sys
import weakref
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
def test_fifty_layers_cost_at_most_eight_forwards_of_each_mini_batch(build, is_sick, convolutions):
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
    assert passes[ROWS[0]] <= 8  # it is the example, too


def test_one_mini_batch_costs_at_most_eight_forwards_too(convolutions):
    torch.manual_seed(0)
    batches = labelled()[:1]
    model = sick(batches)
    convolutions.clear()
    diagnose(model, batches, progress=False)
    assert sum(convolutions.values()) <= 8 * CONVOLUTIONS


class Copies:
    """Counts the copies of a network, by its only matrix, and those that live at a time."""

    def __init__(self, monkeypatch):
        self.number = 0
        self.bytes = self.most_bytes = 0
        copy = nn.Parameter.__deepcopy__

        def counted(parameter, memo):
            made = copy(parameter, memo)
            self.number += parameter.dim() == 2  # of the last layer
            self.change(made.nbytes)
            weakref.finalize(made, self.change, -made.nbytes)
            return made

        monkeypatch.setattr(nn.Parameter, "__deepcopy__", counted)

    def change(self, difference):
        self.bytes += difference
        self.most_bytes = max(self.most_bytes, self.bytes)


@pytest.mark.parametrize(("build", "copies"), [(fresh, 4), (well, 7), (sick, 5)])
def test_few_copies_live_at_a_time_and_all_are_let_go(build, copies, monkeypatch):
    torch.manual_seed(0)
    batches = labelled()
    model = build(batches)
    held = sum(parameter.nbytes for parameter in model.parameters())
    counted = Copies(monkeypatch)
    found = diagnose(model, batches, loss=F.cross_entropy, progress=False)
    assert counted.number == copies
    assert counted.most_bytes <= 4 * held
    assert found.layers
    assert counted.bytes == 0


def deep(depth, *, training):
    torch.manual_seed(0)
    blocks = [(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(depth)]
    model = nn.Sequential(*(layer for block in blocks for layer in block)).train(training)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean += 5
            module.momentum = 0.99
    return model


def calls_of_functions(depth, *, training):
    """Return how many Python functions are called for a diagnosis and all its forms."""
    model, batches = deep(depth, training=training), [torch.randn(16, 8) for _ in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    number = 0

    def count(_frame, event, _argument):
        nonlocal number
        number += event == "call"

    sys.setprofile(count)
    try:
        found = diagnose(model, batches, optimizer=optimizer, progress=False)
        found.to_sarif(), found.to_json(), str(found), found.fixed(model)
    finally:
        sys.setprofile(None)
    return number


@pytest.mark.parametrize("training", [True, False])
def test_the_work_grows_with_the_number_of_layers_and_not_with_its_square(training):
    calls_of_functions(2, training=training)  # the first time imports what it needs
    small, middle, large = (calls_of_functions(n, training=training) for n in (20, 40, 80))
    assert large - middle < 2.2 * (middle - small)
