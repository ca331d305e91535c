import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bnkit import add
from bnkit.surgery import plan_addition
from bnkit.surgery.insertion import insert, plan_insertion
from bnkit.surgery.structure import OPERATIONS, replay
from models import MODELS
from zoo.catalogue import conv, dense, images
from zoo.checks import call, fingerprint, random_state

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
        "import sys, json, torch; from pathlib import Path; from surgery import test_structure\n"
        "from bnkit.surgery.structure import replay\n"
        "folder = Path(sys.argv[1]); plan = json.loads((folder / 'plan.json').read_text())\n"
        "model = replay(test_structure.build(), [e['structure'] for e in plan['edits']])\n"
        "model.load_state_dict(torch.load(folder / 'state.pt', weights_only=True), strict=True)\n"
        "torch.save(model.eval()(test_structure.images()), folder / 'output.pt')\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
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
        r"^`side` is 'left': choose from \('output', 'input'\)$",
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

    monkeypatch.setitem(sys.modules, "of_this_test", SimpleNamespace(scale=scale))
    monkeypatch.setitem(OPERATIONS, "scale", "of_this_test")
    plain = dense()
    scaled = replay(plain, [{"operation": "scale", "layer": "", "by": 2.0}])
    assert torch.equal(scaled.weight, 2 * plain.weight)


def test_a_twin_and_an_inserted_network_have_the_same_structure():
    plain = build()
    assert str(add(plain, images())) == str(insert(plain, images()))
