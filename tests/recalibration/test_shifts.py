import json

import pytest
import torch
from torch import nn

from bnkit.recalibration import plan_recalibration

X = torch.tensor([[1.0, 10.0], [3.0, 10.0], [8.0, 10.0]])  # mean 4 and 10, variance 13 and 0


def model():
    layers = nn.Sequential(nn.BatchNorm1d(2, eps=1.0), nn.BatchNorm1d(2, momentum=0.0))
    layers[0].running_mean.copy_(torch.tensor([4.0, 7.0]))
    layers[0].running_var.copy_(torch.tensor([6.0, 0.5]))
    return layers


def test_it_says_how_far_each_layer_was_off():
    (shift,) = plan_recalibration(model(), X).layers
    assert (shift.layer, shift.kind) == ("0", "BatchNorm1d")
    assert shift.mean_shift == pytest.approx(3)  # (10 - 7) / sqrt(0 + eps)
    assert shift.least_variance_ratio == pytest.approx(0.5)  # (6 + eps) / (13 + eps)
    assert shift.largest_variance_ratio == pytest.approx(1.5)  # (0.5 + eps) / (0 + eps)
    assert (shift.inputs, shift.values) == (1, 3)


def test_a_model_that_was_recalibrated_is_not_off():
    plan = plan_recalibration(model(), X)
    (shift,) = plan_recalibration(plan.apply(model()), X).layers
    assert shift.mean_shift == pytest.approx(0, abs=1e-6)
    assert shift.least_variance_ratio == shift.largest_variance_ratio == pytest.approx(1)


def test_it_reads_as_a_table():
    text = """\
 layer   kind          mean off by   running variance / variance   measured on
───────────────────────────────────────────────────────────────────────────────────────────
 0       BatchNorm1d   3 std         0.5 to 1.5                    1 mini-batch, 3 values

 left alone   why
────────────────────────────────────────
 1            frozen: its momentum is 0"""
    assert [line.rstrip("─") for line in str(plan_recalibration(model(), X)).splitlines()] == [
        line.rstrip("─") for line in text.splitlines()
    ]


def test_it_is_plain_data():
    data = plan_recalibration(model(), X).to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["left_alone"] == {"1": "frozen: its momentum is 0"}
    assert data["layers"][0]["kind"] == "BatchNorm1d"


def test_a_poisoned_layer_is_off_by_no_number():
    poisoned = model()
    poisoned[0].running_mean.fill_(torch.nan)
    plan = plan_recalibration(poisoned, X)
    assert plan.to_json()["layers"][0]["mean_shift"] is None
    assert "nan std" in str(plan)
    assert plan.apply(poisoned)[0].running_mean.tolist() == [4.0, 10.0]


def test_what_was_measured_is_not_changed_until_it_is_applied():
    original = model()
    plan = plan_recalibration(original, X)
    assert original[0].running_mean.tolist() == [4.0, 7.0]
    copy = plan.apply(original)
    assert original[0].running_mean.tolist() == [4.0, 7.0]
    assert copy[0].running_mean.tolist() == [4.0, 10.0]
    plan.apply_(original)
    assert original[0].running_mean.tolist() == [4.0, 10.0]
    assert original[0].num_batches_tracked == 1


def test_applying_is_taken_back_bit_by_bit():
    changed = model()
    changed[0].running_mean.mul_(1.1)
    before = {key: value.clone() for key, value in changed.state_dict().items()}
    plan = plan_recalibration(changed, X)
    plan.apply_(changed)
    plan.revert_(changed)
    assert all(torch.equal(before[key], value) for key, value in changed.state_dict().items())


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.BatchNorm1d(3)),
        nn.Sequential(nn.Linear(2, 2)),
        nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)),
        nn.BatchNorm1d(2),
    ],
    ids=["other features", "another layer", "no running statistics", "another path"],
)
def test_statistics_are_applied_to_no_other_model(other):
    message = r"`model` has no batch norm '0' with 2 features and running statistics: apply these"
    with pytest.raises(ValueError, match=message):
        plan_recalibration(model(), X).apply_(other)
