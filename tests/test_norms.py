"""One zoo of layers: every verb says of each the same, whether it is a batch norm and frozen."""

import pytest
import torch
from torch import nn

import bnkit
from bnkit.diagnosis.gathering import gather
from bnkit.diagnosis.rules.reading import readings
from bnkit.layers.domains import DomainBatchNorm1d
from bnkit.layers.frozen import FrozenBatchNorm1d
from bnkit.layers.masked import MaskedBatchNorm1d
from bnkit.monitoring import Monitor
from bnkit.norms import (
    NO_STATISTICS,
    NOT_CHOSEN,
    batch_norms,
    unwrapped,
    why_frozen,
    why_same_in_both_modes,
)
from bnkit.recalibration import plan_recalibration
from bnkit.surgery import plan_acceleration, plan_conversion, plan_folding, plan_removal
from bnkit.train_eval_gap import explain_gap


class TheirBatchNorm(nn.Module):
    """A batch norm of another library."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))
        self.eps = 1e-5

    def forward(self, x):
        return (x - self.running_mean) / (self.running_var + self.eps).sqrt()


class Frozen(nn.BatchNorm1d):
    """A batch norm that says by its name that it is frozen, as those of detection libraries."""

    def forward(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var)


def flagged(**attributes):
    layer = nn.BatchNorm1d(4)
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


class BatchNormBlock(nn.Module):
    """A module with a batch norm inside, and a name that sounds like one."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(x)


# Of each batch norm: why its statistics are frozen, and why both modes do the same.
IN_EVAL = "frozen: it is in eval mode inside a model in training mode"
UNTRACKED = "frozen: its track_running_stats is False"
ZOO = {
    "plain": (lambda: nn.BatchNorm1d(4), None, None),
    "ours.norm": (lambda: bnkit.BatchNorm1d(4, activation="relu"), None, None),
    "domains": (lambda: DomainBatchNorm1d(4, domains=("day", "night")), None, None),
    "kept": (lambda: nn.BatchNorm1d(4, momentum=0.0), "frozen: its momentum is 0", None),
    "untracked": (lambda: flagged(track_running_stats=False), UNTRACKED, None),
    "evaluated": (lambda: nn.BatchNorm1d(4).eval(), IN_EVAL, IN_EVAL),
    "fixed": (lambda: FrozenBatchNorm1d(4), *2 * ("frozen: it is a FrozenBatchNorm1d",)),
    "named": (lambda: Frozen(4), *2 * ("frozen: it is a Frozen",)),
    "masked": (lambda: MaskedBatchNorm1d(4, default="all"), None, None),
    "bare": (lambda: nn.BatchNorm1d(4, track_running_stats=False), UNTRACKED, None),
    "theirs": (TheirBatchNorm, *2 * ("frozen: it is a TheirBatchNorm",)),
    "block.norm": (lambda: nn.BatchNorm1d(4), None, None),
}
INCOMPARABLE = {
    "masked": "it is masked: what it leaves out of its input cannot be seen from outside",
    "bare": NO_STATISTICS,
    "theirs": "TheirBatchNorm is of another library: what its buffers mean is unknown",
}
ROWS = torch.arange(32.0).reshape(8, 4).sin()


@pytest.fixture
def model():
    model = nn.Sequential()
    for name, (make, *_) in ZOO.items():
        if name != "block.norm":
            model.add_module(name.partition(".")[0], make())
    model.add_module("block", BatchNormBlock())
    model.add_module("group", nn.GroupNorm(2, 4))
    model.add_module("linear", nn.Linear(4, 4))
    return model


def test_the_batch_norms_of_a_model(model):
    assert batch_norms(model).paths == tuple(ZOO)
    assert batch_norms(model, lambda path, _: path == "plain") == batch_norms(
        model, objection=lambda path, _: None if path == "plain" else NOT_CHOSEN
    )


def test_a_shared_layer_counts_once(model):
    model.add_module("again", model.plain)
    assert batch_norms(model).paths == tuple(ZOO)


@pytest.mark.parametrize("path", ZOO)
def test_what_freezes_a_layer(model, path):
    layer = model.get_submodule(path)
    assert (why_frozen(model, layer), why_same_in_both_modes(model, layer)) == ZOO[path][1:]


def test_a_model_that_is_all_in_eval_mode_is_frozen_by_no_flag(model):
    model.eval()
    assert why_frozen(model, model.evaluated) is None


def test_recalibration_leaves_alone_what_is_frozen_or_incomparable(model):
    expected = {
        path: INCOMPARABLE.get(path) or frozen
        for path, (_, frozen, _) in ZOO.items()
        if path in INCOMPARABLE or frozen
    }
    plan = plan_recalibration(model, ROWS)
    assert plan.left_alone == expected
    assert [shift.layer for shift in plan.layers] == [path for path in ZOO if path not in expected]


def test_the_gap_leaves_out_what_both_modes_normalise_alike_or_is_incomparable(model):
    expected = {
        path: INCOMPARABLE.get(path) or same
        for path, (_, _, same) in ZOO.items()
        if path in INCOMPARABLE or same
    }
    gap = explain_gap(model, ROWS)
    assert {path: why for path, why in gap.left_out.items() if path in ZOO} == expected
    assert [layer.layer for layer in gap.layers] == [path for path in ZOO if path not in expected]


def test_the_monitor_looks_at_all(model):
    with Monitor(model) as monitor:
        model(ROWS)
    assert [record.layer for record in monitor.records] == list(ZOO)


@pytest.mark.parametrize(
    "plan",
    [
        plan_folding,
        plan_removal,
        plan_acceleration,
        lambda model, example: plan_conversion(model, "torch", example),
    ],
    ids=["fold", "remove", "accelerate", "convert"],
)
def test_the_verbs_of_surgery_tell_of_all(model, plan):
    made = plan(model, ROWS)
    told = {row.layer for row in (*made.edits, *made.left_alone)}
    functions = {row.layer for row in made.left_alone if row.kind == "function"}
    assert told - functions - {"group", "ours"} == set(ZOO)


def test_the_doctor_calls_the_same_layers_frozen(model):
    evidence = gather(model)
    assert {r.path: r.frozen for r in readings(evidence) if r.norm is not None} == {
        path: frozen is not None for path, (_, frozen, _) in ZOO.items()
    }


def test_the_reasons_are_told_where_nothing_is_left(model):
    chosen = batch_norms(model, lambda *_: False)
    shown = "; ".join(f"{path}: {NOT_CHOSEN}" for path in list(ZOO)[:8])
    assert chosen.why_none(model) == f"{shown}; and {len(ZOO) - 8} more"


def test_wrappers_are_taken_off(model):
    assert unwrapped(nn.DataParallel(nn.DataParallel(model))) is model
    assert unwrapped(torch.compile(model, backend="eager")) is model
