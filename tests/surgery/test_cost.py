"""What a plan with its proof costs: forwards, copies of the model, hooks on its modules."""

from collections import Counter

import pytest
import torch
from torch import nn

import bnkit

ROWS = 8
SINGLE, DOUBLE = torch.float32, torch.float64


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def normalised():
    torch.manual_seed(0)
    first = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU()
    return nn.Sequential(*first, nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


X = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(0))
# The forwards in the model's dtype, on all rows; copies; hooks of each module, before and after.
VERBS = {
    "fold": (normalised, lambda model: bnkit.fold(model, X), 2, 4, (1, 4)),
    "accelerate": (normalised, lambda model: bnkit.accelerate(model, X), 3, 4, (2, 5)),
    "convert": (
        normalised,
        lambda model: bnkit.convert(model, "frozen", X),
        2,
        5,
        (1, 4),
    ),  # the edits are tried on a copy
    "insert": (plain, lambda model: bnkit.insert(model, [X]), 4, 6, (1, 6)),
}


@pytest.mark.parametrize(
    ("build", "verb", "forwards", "copies", "hooks"), VERBS.values(), ids=VERBS
)
def test_of_forwards_copies_and_hooks_there_are_no_more(
    build, verb, forwards, copies, hooks, monkeypatch
):
    model = build().eval()
    runs, others = Counter(), Counter()

    def forward(layer, x, own=nn.Linear.forward):
        runs[x.dtype, len(x)] += layer.out_features == 3  # the last layer
        return own(layer, x)

    def counted(name):
        own = getattr(nn.Module, name)

        def count(*args, **kwargs):
            others[name] += 1
            return own(*args, **kwargs)

        return count

    def copied(parameter, memo, own=nn.Parameter.__deepcopy__):
        others["copies"] += parameter.shape == (3, 4)
        return own(parameter, memo)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", copied)
    names = "register_forward_pre_hook", "register_forward_hook"
    for name in names:
        monkeypatch.setattr(nn.Module, name, counted(name))
    verb(model)
    assert runs == {(SINGLE, ROWS): forwards, (DOUBLE, 1): 2}  # in float64 of an eighth of the rows
    assert others["copies"] == copies
    modules = len([*model.modules()])
    # A layer that owns a batch norm is two modules in the runs of `insert`.
    assert tuple(others[name] // modules for name in names) == hooks
