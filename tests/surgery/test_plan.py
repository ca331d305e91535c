import dataclasses
import json

import pytest
import torch
from torch import nn

from bnkit.surgery import Edit, LeftAlone, Plan, Proof
from bnkit.surgery.plan import replace_module
from zoo.checks import fingerprint


def double(path):
    def change(model):
        with torch.no_grad():
            model.get_submodule(path).weight.mul_(2)

    return change


DOUBLE = Edit(
    "fc", "Linear", "double the weight", "it is small", double("fc"), {"operation": "double"}
)
PLAN = Plan(
    (DOUBLE,),
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
            {
                "layer": "fc",
                "kind": "Linear",
                "change": "double the weight",
                "why": "it is small",
                "structure": {"operation": "double"},
            }
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
    plan = Plan((Edit("", "Linear", "double the weight", "it is small", double("")),), ())
    model = nn.Linear(2, 2)
    assert torch.equal(plan.apply(model).weight, 2 * model.weight)


def test_a_plan_is_a_frozen_record():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.edits = ()
    assert dataclasses.replace(PLAN) == PLAN
    assert "change at" not in repr(PLAN)


def test_the_proof_stands_below_the_table_and_in_the_data():
    plan = dataclasses.replace(PLAN, proof=Proof(2e-7, 3e-6, None))
    assert str(plan).endswith(
        "Same function: error 2.0e-07 in the model's dtype (largest difference 3.0e-06)."
    )
    assert plan.to_json()["proof"] == {
        "error": 2e-7,
        "absolute": 3e-6,
        "error_in_float64": None,
    }


def test_a_module_is_replaced_wherever_it_is_held():
    shared = nn.ReLU().eval()
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU()), "c": shared})
    replace_module(model, "b.0", nn.Identity())
    assert [str(model.get_submodule(path)) for path in ("a", "b.0", "c")] == ["Identity()"] * 3
    assert [model["a"].training, isinstance(model["b"][1], nn.ReLU)] == [False, True]


def test_the_model_itself_is_not_replaced():
    with pytest.raises(ValueError, match="the model itself cannot be replaced: only layers inside"):
        replace_module(nn.ReLU(), "", nn.Identity())
