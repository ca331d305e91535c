"""Verbs in a training on several ranks: one rank looks on alone, or all measure together."""

import pytest
import torch
from torch import nn

import bnkit
from bnkit.layers import SyncBatchNorm1d
from ranks import outcomes_of


def synchronised():
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), SyncBatchNorm1d(6, sync_name="first"), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(6, 2))


def share(rank):
    return torch.randn(9, 4, generator=torch.Generator().manual_seed(rank)) * (1 + rank)


def trained(rank, look=lambda _model, _inputs: None):
    """Return the state after three steps; between them rank 0 looks on, as people do."""
    model, inputs = synchronised(), share(rank)
    for _ in range(3):
        model(inputs).square().sum().backward()
        if rank == 0:
            look(model, inputs)
    return dict(model.state_dict())


def undisturbed(rank):
    return trained(rank)


def with_a_diagnosis(rank):
    return trained(rank, lambda model, x: bnkit.diagnose(model, [x], example=x))


def with_an_acceleration(rank):
    return trained(rank, bnkit.accelerate)


def with_a_gap_explained(rank):
    return trained(rank, lambda model, x: bnkit.explain_gap(model, [x]))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()


def inserted(rank):
    return dict(bnkit.insert(plain(), [share(rank).double()]).state_dict())


def standardised(rank):
    return dict(bnkit.standardize(plain(), [share(rank).double()]).state_dict())


LOOKS = ["with_a_diagnosis", "with_an_acceleration", "with_a_gap_explained"]
POOLED = {"inserted": bnkit.insert, "standardised": bnkit.standardize}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    names = ["undisturbed", *LOOKS, *POOLED]
    return outcomes_of(__file__, names, tmp_path_factory.mktemp("ranks"), size=2, limit=150)


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("look", LOOKS)
def test_who_looks_on_one_rank_neither_waits_for_the_others_nor_answers_them(outcomes, look):
    for found, wanted in zip(outcomes[look], outcomes["undisturbed"], strict=True):
        assert not found.error
        assert_equal(found.value, wanted.value)


@pytest.mark.parametrize("name", POOLED)
def test_statistics_are_those_of_all_ranks_together(outcomes, name):
    alone = POOLED[name](plain(), [share(0).double(), share(1).double()])
    for outcome in outcomes[name]:
        assert not outcome.error
        assert_equal(outcome.value, dict(alone.state_dict()))
