"""Two processes that meet over gloo; each waits at most 20 seconds for the other."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from bnkit.recalibration import recalibrate

PROGRAM = """
import json, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from torch import nn
from bnkit.recalibration import adapt, recalibrate, recalibrate_

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group(
    "gloo", f"file://{folder}/meeting", timedelta(seconds=20), rank=rank, world_size=2
)

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4)).double()

def plain(model):
    return {name: value.tolist() for name, value in model.state_dict().items()}

def broken():
    yield parts[0]
    raise OSError("disk")

def failing(batches):
    model = net()
    try:
        recalibrate_(model, batches)
    except Exception as error:
        unchanged = bool((model[3].running_mean == 0).all())
        return [type(error).__name__, str(error), unchanged]

torch.manual_seed(1)
x = torch.randn(30, 3, dtype=torch.float64) * 3 + 2
parts = x.split([13, 2, 4, 11])
shares = {
    "uneven": [parts[:1], parts[1:]][rank],
    "none on rank 1": [parts, []][rank],
    "none on rank 0": [[], parts][rank],
}
found = {
    f"{name}, {estimator}": plain(recalibrate(net(), batches, estimator=estimator))
    for name, batches in shares.items()
    for estimator in ("batch_statistics", "layer_by_layer")
}
found["adapted"] = adapt(net(), shares["uneven"], prior=10)[1].running_mean.tolist()
found["errors"] = [failing([parts, broken()][rank]), failing([])]
found["after errors"] = recalibrate(net(), shares["uneven"])[1].running_mean.tolist()
print(json.dumps(found))
"""

ESTIMATORS = ("batch_statistics", "layer_by_layer")
SHARES = ("uneven", "none on rank 1", "none on rank 0")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=90) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]  # gloo may print, too


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4)).double()


def parts():
    torch.manual_seed(1)
    x = torch.randn(30, 3, dtype=torch.float64) * 3 + 2
    return x.split([13, 2, 4, 11])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("share", SHARES)
def test_ranks_together_equal_one_process_with_all_mini_batches(ranks, share, estimator):
    alone = recalibrate(net(), parts(), estimator=estimator).state_dict()
    for rank in ranks:
        for name, value in rank[f"{share}, {estimator}"].items():
            ours = torch.tensor(value, dtype=alone[name].dtype)
            torch.testing.assert_close(ours, alone[name], rtol=1e-12, atol=1e-12)


def test_all_ranks_get_the_same_bits(ranks):
    assert ranks[0]["uneven, layer_by_layer"] == ranks[1]["uneven, layer_by_layer"]


def test_rows_of_all_ranks_count_in_an_adaptation(ranks):
    x = net()[0](torch.cat(parts())).detach()
    for rank in ranks:
        expected = (30 / 40 * x.mean(0)).tolist()
        assert rank["adapted"] == pytest.approx(expected)


def test_an_error_on_one_rank_passes_there_and_ends_the_others(ranks):
    assert ranks[1]["errors"][0] == ["OSError", "disk", True]
    kind, text, unchanged = ranks[0]["errors"][0]
    assert (kind, unchanged) == ("RuntimeError", True)
    assert text.startswith("rank 1 stopped with an error while it measured statistics, and all")


def test_no_mini_batch_on_any_rank_is_an_error_on_all(ranks):
    expected = [
        "NoBatchesError",
        "`batches` gave no mini-batch on any rank: pass at least one",
        True,
    ]
    assert [rank["errors"][1] for rank in ranks] == [expected, expected]


def test_ranks_meet_again_after_errors(ranks):
    expected = recalibrate(net(), parts())[1].running_mean.tolist()
    for rank in ranks:
        assert rank["after errors"] == pytest.approx(expected)
