import math

import numpy as np
import pytest
import torch
from torch import nn

from bnkit.surgery.verification import Distance, distance, errors_of_samples, first_difference, run
from zoo.catalogue import vectors
from zoo.checks import fingerprint, random_state

NAN, INF = math.nan, math.inf
PAIRS = {
    "equal": ([1.0, 2.0], [1.0, 2.0], (0.0, 0.0)),
    "relative to the largest of the first": ([1.0, -4.0], [1.5, -4.0], (0.125, 0.5)),
    "zeros: the difference itself": ([0.0, 0.0], [0.0, 1e-3], (1e-3, 1e-3)),
    "the same NaN and infinities": ([NAN, INF, -INF, 2.0], [NAN, INF, -INF, 3.0], (0.5, 1.0)),
    "NaN on one side": ([1.0], [NAN], (INF, INF)),
    "infinite on one side": ([1.0, INF], [1.0, 1.0], (INF, INF)),
    "other infinities": ([INF], [-INF], (INF, INF)),
    "another shape": ([1.0], [1.0, 1.0], (INF, INF)),
    "nothing": ([], [], (0.0, 0.0)),
}


@pytest.mark.parametrize(("a", "b", "expected"), PAIRS.values(), ids=PAIRS)
def test_the_distance_of_two_tensors(a, b, expected):
    a, b = (torch.tensor(x, dtype=torch.float64) for x in (a, b))
    found = distance([a], [b])
    assert (found.error, found.absolute) == pytest.approx(expected, rel=1e-12)


def test_each_figure_is_the_largest_over_all_tensors():
    small, large = torch.tensor([1e-3]), torch.tensor([100.0])
    assert distance([small, large], [2 * small, large + 1]) == Distance(
        pytest.approx(1.0), pytest.approx(1.0)
    )
    assert distance([small, large], [small]) == Distance(INF, INF)
    assert distance([], []) == Distance(0.0, 0.0)


def test_the_error_of_a_sample_is_the_largest_of_all_tensors():
    first, second = torch.tensor([[1.0, 4.0], [2.0, 0.0]]), torch.tensor([1.0, INF])
    others = torch.tensor([[2.0, 4.0], [2.0, 0.0]]), torch.tensor([1.0, NAN])
    assert errors_of_samples([first, second], others).tolist() == [0.25, INF]


def test_numbers_of_every_dtype_are_compared_without_loss():
    whole = torch.tensor([2**53, 0]), torch.tensor([2**53 - 2, 0])
    assert distance(*([t] for t in whole)).absolute == 2
    turned = torch.tensor([3 + 4j]), torch.tensor([3 - 4j])
    assert distance(*([t] for t in turned)) == Distance(1.6, 8.0)
    assert distance([torch.tensor([True])], [torch.tensor([False])]) == Distance(1.0, 1.0)


class Counting(nn.Module):
    """Changes itself, its input and the random generators when it runs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.drop = nn.Dropout()

    def forward(self, x):
        self.count += 1
        x += torch.rand(())
        return self.drop(x)


def test_a_run_changes_nothing_and_begins_in_the_same_state_each_time():
    model, x = Counting(), vectors()
    before, shown, state = fingerprint(model), x.clone(), random_state()
    outcomes = [run(model, x) for _ in range(2)]
    assert fingerprint(model) == before
    assert torch.equal(x, shown)
    assert random_state() == state
    assert distance(outcomes[0].outputs, outcomes[1].outputs).error == 0
    assert not outcomes[0].outputs[0].requires_grad


class Answer:
    """A result of a class of its own."""

    def __init__(self, logits):
        self.logits, self.text = logits, "an answer"


class Giving(nn.Module):
    """Gives its result in one of many ways."""

    def __init__(self, way):
        super().__init__()
        self.last, self.way = nn.Identity(), way

    def forward(self, x):
        return self.way(self.last(2 * x))


WAYS = {
    "a tensor": lambda y: y,
    "nested": lambda y: {"scores": [y]},
    "a class": Answer,
    "an array": lambda y: (y.numpy(), np.array(["a name"])),
    "numbers": lambda y: y.tolist(),
    "hidden from us: what the last layer made": lambda y: lambda: y,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_all_numbers_that_a_model_gives_are_found(way):
    found = torch.cat([t.flatten() for t in run(Giving(way), torch.ones(2)).outputs])
    assert found.tolist() == [2.0, 2.0]


def test_the_dtypes_in_which_a_model_computes_are_seen():
    class Narrow(nn.Module):
        def forward(self, x):
            return (x.to(torch.bfloat16).abs().double(), x.float().chunk(2))

    dtypes = run(Narrow(), torch.ones(2, dtype=torch.float64)).dtypes
    assert dtypes == {torch.float64, torch.float32, torch.bfloat16}


def scaled(model, **by):
    """Return a copy with some weights multiplied."""
    other = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(4)))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for path, factor in by.items():
            other.get_submodule(path.strip("_")).weight.mul_(factor)
    return other


def chain():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(4)))


def test_the_layer_from_which_on_two_models_part_is_named():
    model = chain()
    assert first_difference(model, scaled(model, _1=1.1), vectors(), 1e-3) == "1"
    assert first_difference(model, scaled(model, _1=1.1), vectors(), 0.2) == ""


def test_a_layer_that_parts_and_meets_again_is_not_the_one():
    model = chain()  # as a conv does, into which a batch norm was folded
    assert first_difference(model, scaled(model, _0=4, _1=0.25, _2=1.1), vectors(), 1e-3) == "2"
