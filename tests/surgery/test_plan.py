import dataclasses
import json

import pytest
import torch
from torch import nn

from bnkit.layers.renorm import Ramp
from bnkit.surgery import (
    Edit,
    LeftAlone,
    Plan,
    Proof,
    plan_acceleration,
    plan_addition,
    plan_conversion,
    plan_folding,
    plan_insertion,
    plan_removal,
    plan_standardization,
)
from bnkit.surgery.operations import OPERATIONS, replace_module
from zoo.checks import fingerprint


@pytest.fixture(autouse=True)
def _operations(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "double", double)


def double(model, layer):
    with torch.no_grad():
        model.get_submodule(layer).weight.mul_(2)


DOUBLE = Edit("fc", "Linear", "double the weight", "it is small", "double")
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
                "structure": {"operation": "double", "layer": "fc"},
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
    plan = Plan((Edit("", "Linear", "double the weight", "it is small", "double"),), ())
    model = nn.Linear(2, 2)
    assert torch.equal(plan.apply(model).weight, 2 * model.weight)


def test_a_plan_is_a_frozen_record():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.edits = ()
    assert dataclasses.replace(PLAN) == PLAN
    assert "values" not in repr(PLAN)


def test_the_proof_stands_below_the_table_and_in_the_data():
    plan = dataclasses.replace(PLAN, proof=Proof(2e-7, 3e-6, None))
    assert str(plan).endswith(
        "Same function: error 2.0e-07 in the model's dtype (largest difference 3.0e-06)."
    )
    assert plan.to_json()["proof"] == {
        "error": 2e-7,
        "absolute": 3e-6,
        "error_in_float64": None,
        "why_not_in_float64": None,
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


# A plan as a record that can be compared and kept


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))


IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PLANS = {
    "add": lambda net: plan_addition(net[::2], IMAGES),
    "insert": lambda net: plan_insertion(net[::2], [IMAGES, IMAGES + 1]),
    "fold": lambda net: plan_folding(net, IMAGES),
    "remove": lambda net: plan_removal(net, IMAGES),
    "accelerate": lambda net: plan_acceleration(net, IMAGES),
    "standardize": lambda net: plan_standardization(net, [IMAGES]),
    "convert": lambda net: plan_conversion(
        net, "renorm", IMAGES, r_max=Ramp(1.0, 3.0, 0, 9), d_max=1.0
    ),
    "domains": lambda net: plan_conversion(net, "domains", domains=("day", "night")),
    "convert to group": lambda net: plan_conversion(net, "group", [IMAGES], num_groups=2),
}


@pytest.mark.parametrize("planned", PLANS.values(), ids=PLANS)
def test_plans_are_equal_if_all_in_them_is_tensors_included(planned):
    plan, same = planned(conv_net()), planned(conv_net())
    assert plan == same
    assert plan.edits[0] != dataclasses.replace(plan.edits[0], values={"more": torch.ones(1)})
    assert hash(plan.edits[0]) == hash(same.edits[0])
    for name, value in plan.edits[0].values.items():
        other = {**plan.edits[0].values, name: value + 1}
        assert plan.edits[0] != dataclasses.replace(plan.edits[0], values=other)


@pytest.mark.parametrize("planned", PLANS.values(), ids=PLANS)
def test_a_plan_is_kept_whole_as_plain_data(planned):
    plan = planned(conv_net())
    again = type(plan).from_json(json.loads(json.dumps(plan.to_json(values=True))))
    assert again == plan
    net = conv_net()[::2] if plan.edits[0].operation == "own_batch_norm_at" else conv_net()
    first, second = plan.apply(net), again.apply(net)
    assert str(first) == str(second)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_an_edit_by_a_function_cannot_be_read_again():
    plan = plan_conversion(conv_net(), nn.Identity)
    with pytest.raises(ValueError, match="layer '1' was changed by 'Identity', a function, which"):
        Plan.from_json(plan.to_json())


def test_the_old_way_to_make_one_edit_warns_and_works():
    model = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    before = model["fc"].weight.detach().clone()
    with pytest.warns(DeprecationWarning, match=r"`Edit\.change\(model\)` is now called `Plan"):
        DOUBLE.change(model)
    assert torch.equal(model["fc"].weight, 2 * before)
