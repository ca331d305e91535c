"""Functions `on_...` run on each of two ranks; tests judge what both brought back."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bnkit.layers.exchange import make_group
from bnkit.surgery.conversion import convert, plan_conversion
from cases import seeded
from ranks import outcomes_of

SIZE, LIMIT = 2, 120
ROWS = {0: slice(0, 5), 1: slice(5, 8)}
X = torch.randn(8, 3, 4, 4, generator=seeded(0), dtype=torch.float64)


def net():
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    return nn.Sequential(nn.Sequential(*parts), nn.BatchNorm1d(2)).double()


def limit_of(layer):
    return layer.process_group._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def on_ranks_that_convert(rank):
    model = convert(net(), "sync", timeout=LIMIT)
    y = model(X[ROWS[rank]]).detach()
    layers = [model[0][1], model[1]]
    return {
        "y": y,
        "state": model.state_dict(),
        "names": [layer.sync_name for layer in layers],
        "limits": [limit_of(layer) for layer in layers],
        "one group": layers[0].process_group is layers[1].process_group,
    }


def on_ranks_with_groups(_rank):
    """Return what becomes of groups that are there already, and the limit of a new one."""
    group = make_group(LIMIT)
    mine = convert(net(), "sync", process_group=group)
    default = convert(net(), "sync", process_group=None)
    whys = [left.why for left in plan_conversion(mine, "sync").left_alone]
    return {
        "given": mine[1].process_group is group,
        "default": default[1].process_group is None,
        "kept": whys == ["already of that kind"] * 2,
        "new for default": limit_of(convert(default, "sync")[1]),
        "other limit": limit_of(convert(mine, "sync", timeout=7)[1]),
        "torch's": limit_of(convert(nn.Sequential(nn.SyncBatchNorm(3)), "sync", X.float())[0]),
    }


def on_ranks_that_are_wrong(_rank):
    convert(net(), "sync", timeout=3, process_group=dist.group.WORLD)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    names = [name for name in globals() if name.startswith("on_")]
    return outcomes_of(__file__, names, tmp_path_factory.mktemp("ranks"), size=SIZE, limit=LIMIT)


def values(of_ranks):
    assert [outcome.error for outcome in of_ranks] == [""] * SIZE
    return [outcome.value for outcome in of_ranks]


def test_ranks_train_as_one_process_in_a_group_of_their_own_with_a_time_limit(outcomes):
    found = values(outcomes["on_ranks_that_convert"])
    plain = net()
    torch.testing.assert_close(torch.cat([rank["y"] for rank in found]), plain(X).detach())
    for rank in found:
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(rank["state"][name], value)
        assert rank["names"] == ["0.1", "1"]
        assert rank["limits"] == [LIMIT, LIMIT]
        assert rank["one group"]


def test_groups_that_are_given_or_there_already_are_kept(outcomes):
    for rank in values(outcomes["on_ranks_with_groups"]):
        assert rank == {
            "given": True,
            "default": True,
            "kept": True,
            "new for default": 300.0,
            "other limit": 7.0,
            "torch's": 300.0,
        }


def test_a_limit_for_a_group_that_is_given_is_refused(outcomes):
    for outcome in outcomes["on_ranks_that_are_wrong"]:
        assert outcome.error.startswith(
            "ValueError: `timeout` is 3 and `process_group` is given, which has a limit of its own"
        )


def test_alone_there_is_no_group():
    assert convert(net(), "sync")[1].process_group is None
