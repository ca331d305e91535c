import dataclasses
import json

import pytest
import torch
from torch import nn

from bnkit.surgery import Edit, LeftAlone, Plan
from zoo.checks import fingerprint


def double(layer):
    with torch.no_grad():
        layer.weight.mul_(2)


PLAN = Plan(
    (Edit("fc", "Linear", "double the weight", "it is small", double),),
    (LeftAlone("head", "Linear", "it is large"), LeftAlone("", "Net", "it is the model")),
)


def test_a_plan_prints_as_a_table():
    assert str(PLAN).splitlines() == [
        " layer         kind     change              why",
        "─" * 60,
        " fc            Linear   double the weight   it is small",
        " head          Linear   left alone          it is large",
        " (the model)   Net      left alone          it is the model",
    ]


def test_an_empty_plan_says_so():
    assert str(Plan((), ())) == (
        "Nothing to change: the model has no layer of the kinds in question."
    )


def test_a_plan_is_plain_data():
    data = json.loads(json.dumps(PLAN.to_json()))
    assert data == {
        "edits": [
            {"layer": "fc", "kind": "Linear", "change": "double the weight", "why": "it is small"}
        ],
        "left_alone": [
            {"layer": "head", "kind": "Linear", "why": "it is large"},
            {"layer": "", "kind": "Net", "why": "it is the model"},
        ],
    }


def test_a_plan_is_applied_to_a_copy():
    model = nn.ModuleDict({"fc": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    before = fingerprint(model)
    changed = PLAN.apply(model)
    assert fingerprint(model) == before
    assert torch.equal(changed["fc"].weight, 2 * model["fc"].weight)
    assert torch.equal(changed["head"].weight, model["head"].weight)


def test_the_model_itself_can_be_edited():
    plan = Plan((Edit("", "Linear", "double the weight", "it is small", double),), ())
    model = nn.Linear(2, 2)
    assert torch.equal(plan.apply(model).weight, 2 * model.weight)


def test_a_plan_is_a_frozen_record():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.edits = ()
    assert dataclasses.replace(PLAN) == PLAN
    assert "double at" not in repr(PLAN)
