import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from bnkit import add
from bnkit.layers.renorm import Ramp
from bnkit.surgery import operations, plan_addition
from bnkit.surgery.insertion import insert, plan_insertion
from bnkit.surgery.operations import OPERATIONS, Edit, make_edits, replay
from models import MODELS
from zoo.catalogue import conv, dense, images
from zoo.checks import call, fingerprint, random_state

TESTS = Path(__file__).parents[1]
PLACEMENTS = ("before_activation", "after_activation")
CASES = [
    pytest.param(model, placement, id=f"{model}, {placement}")
    for model in MODELS
    for placement, paths in zip(PLACEMENTS, (model.before, model.after), strict=True)
    if paths
]


def structures_of(plan):
    """Return the structures of a plan as they come out of the metadata of a file."""
    return [edit["structure"] for edit in json.loads(json.dumps(plan.to_json()))["edits"]]


@pytest.mark.parametrize(("model", "placement"), CASES)
def test_the_structure_of_every_twin_is_made_again(model, placement):
    plain, example = model.seeded(), model.example()
    plan = plan_addition(plain, example, placement=placement, momentum=None, eps=0.25)
    twin = plan.apply(plain)
    with torch.no_grad():
        call(twin.train(), example)  # for running statistics
    torch.manual_seed(1)
    fresh = replay(model.build(), structures_of(plan))
    fresh.load_state_dict(twin.state_dict(), strict=True)
    assert str(fresh) == str(twin)  # with classes, momentum and eps
    expected, found = (call(net.eval(), example) for net in (twin, fresh))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def build():
    return nn.Sequential(conv(), nn.ReLU(), conv(4, 6), nn.ReLU(), nn.Flatten(), dense(216, 3))


def test_a_checkpoint_is_loaded_in_another_process(tmp_path):
    plan = plan_insertion(build(), [images(), images() + 1])
    changed = plan.apply(build())
    torch.save(changed.state_dict(), tmp_path / "state.pt")
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    program = (
        "import sys, json, torch; from pathlib import Path; from surgery import test_operations\n"
        "from bnkit.surgery.operations import replay\n"
        "folder = Path(sys.argv[1]); plan = json.loads((folder / 'plan.json').read_text())\n"
        "model = replay(test_operations.build(), [e['structure'] for e in plan['edits']])\n"
        "model.load_state_dict(torch.load(folder / 'state.pt', weights_only=True), strict=True)\n"
        "torch.save(model.eval()(test_operations.images()), folder / 'output.pt')\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        check=True,
    )
    assert torch.equal(torch.load(tmp_path / "output.pt"), changed.eval()(images()))


def test_changes_are_made_one_after_the_other():
    plain = build()
    first = plan_addition(plain, images(), where=lambda path, _: path == "0")
    second = plan_addition(first.apply(plain), images(), placement="after_activation")
    fresh = replay(build(), structures_of(first) + structures_of(second))
    assert str(fresh) == str(second.apply(first.apply(plain)))


def test_the_model_stays_as_it_is():
    plain = build()
    before, state = fingerprint(plain), random_state()
    structures = structures_of(plan_addition(plain, images()))
    replay(plain, structures)
    with pytest.raises(ValueError, match="unknown"):
        replay(plain, [*structures, {"operation": "unknown", "layer": "0"}])
    assert fingerprint(plain) == before
    assert random_state() == state


def test_the_batch_norms_have_the_dtype_of_the_fresh_model():
    structures = structures_of(plan_addition(build(), images(), placement="after_activation"))
    fresh = replay(build().double(), structures)
    assert fresh[1].batchnorm.weight.dtype is torch.float64


OWN = {"operation": "own_batch_norm_at", "side": "output", "features": 4, "axis": 1, "rank": 4}
REST = {"momentum": 0.1, "eps": 1e-5}
MISTAKES = {
    "an unknown operation": (
        {"operation": "melt", "layer": "0"},
        r"^change 2 is by the operation 'melt', which this version .* knows 'apply_acceleration', ",
    ),
    "no operation: an edit that does not say its structure": ({}, r"by the operation None, which"),
    "another model": (
        {**OWN, **REST, "layer": "features.0"},
        r"is of the layer 'features.0', which the model \(Sequential\) does not have: build it as",
    ),
    "no layer": ({**OWN, **REST}, r"of the layer None, which the model"),
    "an option that is missing": (
        {**OWN, "layer": "2"},
        r"^change 2 \(own_batch_norm_at of the layer '2'\): missing a required argument: 'mom",
    ),
    "an option of another version": (
        {**OWN, **REST, "layer": "2", "colour": "red"},
        r"^change 2 \(own_batch_norm_at of the layer '2'\): got an unexpected keyword argument 'c",
    ),
    "a model that was changed already": (
        {**OWN, **REST, "layer": "0"},
        r"^layer '0' \(NormalizedConv2d\) has a `batchnorm` already$",
    ),
    "a side that there is not": (
        {**OWN, **REST, "layer": "2", "side": "left"},
        r"its 'side' is 'left', which .* kind that is wanted, one of \('output', 'input'\)$",
    ),
}


@pytest.mark.parametrize(("structure", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_made_again_is_refused(structure, message):
    with pytest.raises(ValueError, match=message):
        replay(build(), [{**OWN, **REST, "layer": "0"}, structure])


def test_another_operation_is_one_entry_of_the_table(monkeypatch):
    def scale(model, layer, *, by):
        with torch.no_grad():
            model.get_submodule(layer).weight.mul_(by)

    monkeypatch.setitem(OPERATIONS, "scale", scale)
    plain = dense()
    scaled = replay(plain, [{"operation": "scale", "layer": "", "by": 2.0}])
    assert torch.equal(scaled.weight, 2 * plain.weight)


def test_a_twin_and_an_inserted_network_have_the_same_structure():
    plain = build()
    assert str(add(plain, images())) == str(insert(plain, images()))


# Putting modules where others are


def deep(count):
    return nn.Sequential(*(nn.Sequential(nn.ReLU(), nn.Dropout()) for _ in range(count)))


@pytest.mark.parametrize("count", [10, 20])
def test_a_plan_of_many_edits_walks_the_model_once(monkeypatch, count):
    walks = []
    note = operations._Holders._note
    monkeypatch.setattr(
        operations._Holders, "_note", lambda self, root: (walks.append(root), note(self, root))
    )
    edits = [Edit(f"{i}.1", "Dropout", "", "", "leave_out") for i in range(count)]
    model = make_edits(deep(count), edits)
    assert all(isinstance(block[1], nn.Identity) for block in model)
    assert [root for root in walks if root is model] == [model]


def test_what_an_edit_put_there_is_found_by_the_next():
    shared = nn.BatchNorm1d(2)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Dropout()})
    edits = [
        Edit("b", "BatchNorm1d", "", "", "unshare"),  # a new module, which the walk has not seen
        Edit("b", "BatchNorm1d", "", "", "leave_out"),
        Edit("c", "Dropout", "", "", "leave_out"),
    ]
    made = make_edits(model, edits)
    assert [type(made[key]).__name__ for key in "abc"] == ["BatchNorm1d", "Identity", "Identity"]
    assert made["a"] is shared


def test_a_layer_that_a_new_one_is_around_is_found_where_it_is_then():
    norm = nn.BatchNorm1d(2)
    model = nn.ModuleDict({"a": norm, "b": norm})
    around = Edit("a", "", "", "", "convert_layer", {"to": nn.Sequential, "options": {}})
    made = make_edits(model, [around, Edit("b.0", "", "", "", "leave_out")])
    assert made["a"] is made["b"]
    assert isinstance(made["a"][0], nn.Identity)


def test_threads_do_not_share_what_is_known_of_a_model():
    def edited(_):
        model = deep(40)
        edits = [Edit(f"{i}.1", "Dropout", "", "", "leave_out") for i in range(40)]
        return all(isinstance(block[1], nn.Identity) for block in make_edits(model, edits))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(edited, range(16)))


# Edits as plain data


def converted(**options):
    return Edit("0", "BatchNorm1d", "", "", "convert_layer", {"to": "masked", "options": options})


def test_options_go_to_plain_data_and_back():
    edit = converted(domains=["day", "night"], r_max=Ramp(1, 3, 0, 9), default="all")
    assert Edit.from_json(json.loads(json.dumps(edit.to_json()))) == edit
    group = converted(process_group=object())  # it belongs to the process
    assert Edit.from_json(group.to_json()) == converted()


def test_an_option_that_is_a_function_is_named_and_not_read_again():
    edit = converted(r_max=torch.sqrt)
    with pytest.raises(ValueError, match=r"'0' was changed by '.*sqrt', a function, which ca"):
        Edit.from_json(edit.to_json())
