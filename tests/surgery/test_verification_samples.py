import math

import pytest
import torch
from torch import nn

from bnkit.surgery.verification import (
    Outcome,
    furthest_samples,
    run,
    samples_of,
    stands_for,
    unwritten,
)

NOTHING = frozenset()


def outcome(*outputs):
    return Outcome([torch.as_tensor(t) for t in outputs], NOTHING)


def example(rows=16):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))


def test_the_samples_are_those_in_which_any_output_is_furthest_off():
    scores, boxes = torch.ones(17, 3), 100 * torch.ones(17)
    others, moved = scores.clone(), boxes.clone()
    others[3, 1], others[9, 2] = 1.01, 1.002
    moved[12] = 100.5  # 0.005 of the largest
    found = furthest_samples(example(17), outcome(scores, boxes), outcome(others, moved))
    assert found.tolist() == [3, 12]


def test_a_sample_in_which_one_side_is_no_number_is_furthest_off():
    before, after = torch.zeros(8), torch.zeros(8)
    after[2], after[5] = 1.0, math.nan
    assert furthest_samples(example(8), outcome(before), outcome(after)).tolist() == [5]


WITHOUT_ROWS = {
    "a single one": (example(1), torch.ones(1)),
    "a loss": (example(), torch.ones(())),
    "an output of another size": (example(), torch.ones(4)),
    "inputs of several sizes": ((example(), torch.ones(4)), torch.ones(16)),
    "no tensor": ({"text": "words"}, 1.0),
}


@pytest.mark.parametrize(("given", "output"), WITHOUT_ROWS.values(), ids=WITHOUT_ROWS)
def test_where_samples_cannot_be_told_apart_there_are_none(given, output):
    assert furthest_samples(given, outcome(output), outcome(output)) is None


class Net(nn.Module):
    """Does one of many things between two layers."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.rare = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 4)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def only_where_positive(net, x):
    chosen = x[:, 0] > 0
    return x if not chosen.any() else torch.where(chosen[:, None], net.rare(x), x)


PLAIN = {"a layer": lambda _, x: x.relu(), "among features": lambda _, x: x - x.mean(1)[:, None]}
OTHER = {
    "rows meet": lambda _, x: x - x.mean(0),
    "the batch size decides": lambda _, x: x.relu() if len(x) > 4 else x,
    "a layer for some rows only": only_where_positive,
    "random numbers": lambda _, x: x + torch.rand_like(x),
    "a row has its number": lambda _, x: x + torch.arange(len(x))[:, None],
}


def part_stands(between, rows):
    net, x = Net(between), example()
    part, whole = run(net, samples_of(x, rows)), run(net, x)
    return stands_for(part, whole, rows, bound=1e-5)


@pytest.mark.parametrize("between", PLAIN.values(), ids=PLAIN)
def test_samples_that_go_their_own_way_stand_for_all(between):
    assert part_stands(between, torch.tensor([3, 12]))


@pytest.mark.parametrize("between", OTHER.values(), ids=OTHER)
def test_samples_that_do_not_go_their_own_way_stand_for_nothing(between):
    first = Net(between).first(example())[:, 0]
    assert not part_stands(between, (first < 0).nonzero().flatten()[-2:])


def replace(layer):
    layer.running_mean = torch.ones(2)


CHANGES = {"written": lambda layer: layer.running_mean.add_(1), "replaced": replace}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model_that_changes_when_it_runs_is_noticed(change):
    layer = nn.BatchNorm1d(2)
    with pytest.raises(RuntimeError, match="changes when it runs"), unwritten(layer):
        change(layer)
