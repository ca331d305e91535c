import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bnkit import SurgeryError, add
from bnkit.dataflow import duplicate
from bnkit.surgery import plan_addition
from models import MODELS
from zoo.by_hand import gradients, normalised_by_hooks
from zoo.checks import call, converted, fingerprint, memory, random_state

PLACEMENTS = ("before_activation", "after_activation")
CASES = [
    pytest.param(model, placement, id=f"{model}, {placement}")
    for model in MODELS
    for placement in PLACEMENTS
]
CHANGED = [
    pytest.param(model, placement, paths, id=f"{model}, {placement}")
    for model in MODELS
    for placement, paths in zip(PLACEMENTS, (model.before, model.after), strict=True)
    if paths
]
EVERY_MODEL = pytest.mark.parametrize(("model", "placement"), CASES)
EVERY_TWIN = pytest.mark.parametrize(("model", "placement", "paths"), CHANGED)
SAME_FOR_ALL_PATHS = pytest.mark.parametrize(
    ("model", "placement"), [pytest.param(*case.values[:2], id=case.id) for case in CHANGED]
)


def dropped_biases(plain, paths, placement):
    """Return the names of the biases that are redundant: of torch's own layers, before."""
    own = {p for p in paths if type(plain.get_submodule(p)).__module__.startswith("torch.nn")}
    names = dict(plain.named_parameters())
    before = placement == "before_activation"
    return {f"{path}.bias" for path in own if before and f"{path}.bias" in names}


@EVERY_MODEL
def test_batch_norm_goes_where_it_belongs_and_the_rest_is_left_alone_for_its_reason(
    model, placement
):
    plan = plan_addition(model.seeded(), model.example(), placement=placement)
    expected = model.before if placement == "before_activation" else model.after
    assert {edit.layer for edit in plan.edits} == expected
    if placement == "before_activation":
        reasons = {left.layer: left.why for left in plan.left_alone}
        assert [p for p, why in model.alone.items() if why not in reasons.get(p, "")] == []


@EVERY_MODEL
def test_the_model_the_example_and_the_random_generators_stay_as_they_are(model, placement):
    plain, example = model.seeded(), model.example()
    before, shown, state = fingerprint(plain), repr(example), random_state()
    expected = model.before if placement == "before_activation" else model.after
    if expected:
        add(plain, example, placement=placement)
    else:
        with pytest.raises(SurgeryError, match="nothing in this model can be normalised"):
            add(plain, example, placement=placement)
    assert fingerprint(plain) == before
    assert repr(example) == shown
    assert random_state() == state


@SAME_FOR_ALL_PATHS
def test_the_twin_shares_nothing_with_the_model(model, placement):
    plain = model.seeded()
    twin = add(plain, model.example(), placement=placement)
    assert memory(twin).isdisjoint(memory(plain))
    assert set(twin.modules()).isdisjoint(plain.modules())


@EVERY_TWIN
def test_the_twin_has_the_names_classes_modes_and_values_of_the_model(model, placement, paths):
    plain = model.seeded()
    twin = add(plain, model.example(), placement=placement)
    old, new = dict(plain.named_parameters()), dict(twin.named_parameters())
    assert set(old) - set(new) == dropped_biases(plain, paths, placement)
    made = {f"{path}.batchnorm.{name}" for path in paths for name in ("weight", "bias")}
    assert set(new) - set(old) == made
    for name in set(old) & set(new):
        assert torch.equal(old[name], new[name])
        assert old[name].requires_grad == new[name].requires_grad
    for path, module in plain.named_modules():
        other = twin.get_submodule(path)
        assert isinstance(other, type(module))
        assert (type(other) is type(module)) == (path not in paths)
        assert other.training == module.training
    assert all(
        layer.batchnorm.training == layer.training for layer in map(twin.get_submodule, paths)
    )


@EVERY_TWIN
def test_the_twin_is_what_one_writes_by_hand(model, placement, paths):
    plain, example = model.seeded().double().train(), converted(model.example(), torch.float64)
    twin = add(plain, example, placement=placement)
    by_hand = normalised_by_hooks(plain, paths, placement)
    with torch.no_grad():
        for name in dropped_biases(plain, paths, placement):
            by_hand.get_parameter(name).zero_()
    for mode in (True, True, False):  # running statistics of two mini-batches, then they are used
        outputs = [call(net.train(mode), example) for net in (twin, by_hand)]
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    ours, theirs = (gradients(net.train(), example) for net in (twin, by_hand))
    redundant = dropped_biases(plain, paths, placement)
    assert set(theirs) - set(ours) <= redundant  # by hand they are kept, at 0 and without effect
    for name in set(ours) & set(theirs):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-8, atol=1e-8)
    assert all(theirs[name].abs().max() < 1e-10 for name in redundant & set(theirs))


@SAME_FOR_ALL_PATHS
def test_the_twin_can_be_copied_and_pickled(model, placement):
    example = model.example()
    twin = add(model.seeded(), example, placement=placement).train()
    with torch.no_grad():  # else some of the models hold tensors that torch does not copy
        call(twin, example)  # for running statistics
    twin.eval()
    same = [duplicate(twin)]
    if model.pickles:
        same += [copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))]
    for other in same:
        assert [type(m) for m in other.modules()] == [type(m) for m in twin.modules()]
        torch.testing.assert_close(call(other, example), call(twin, example), rtol=0, atol=0)


@SAME_FOR_ALL_PATHS
def test_the_state_of_the_twin_loads_without_unpickling(model, placement):
    example = model.example()
    twin, other = (add(model.seeded(), example, placement=placement) for _ in range(2))
    call(twin.train(), example)
    file = io.BytesIO()
    torch.save(twin.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(
        call(other.eval(), example), call(twin.eval(), example), rtol=0, atol=0
    )


@EVERY_TWIN
def test_old_checkpoints_fit_but_for_redundant_biases(model, placement, paths):
    plain = model.seeded()
    twin = add(plain, model.example(), placement=placement)
    found = twin.load_state_dict(plain.state_dict(), strict=False)
    dropped = dropped_biases(plain, paths, placement)
    assert {plain.get_parameter(key) for key in found.unexpected_keys} == {
        plain.get_parameter(name) for name in dropped
    }
    new = {twin.get_submodule(key.partition(".batchnorm.")[0]) for key in found.missing_keys}
    assert new == {twin.get_submodule(path) for path in paths}


def test_twins_are_unpickled_in_another_process(tmp_path):
    twins = [
        (add(m.seeded(), m.example(), placement=p).eval(), m.example())
        for m, p in (case.values[:2] for case in CHANGED[::12])
        if m.pickles
    ]
    outputs = [call(twin, example) for twin, example in twins]
    torch.save((twins, outputs), tmp_path / "twins.pt")
    program = (
        "import sys, torch; from zoo.checks import call\n"
        "twins, outputs = torch.load(sys.argv[1], weights_only=False)\n"
        "for (twin, example), expected in zip(twins, outputs, strict=True):\n"
        "    torch.testing.assert_close(call(twin, example), expected)\n"
        "print(sum(hasattr(m, 'batchnorm') for twin, _ in twins for m in twin.modules()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "twins.pt"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=True,
        capture_output=True,
        text=True,
    )
    changed = sum(hasattr(m, "batchnorm") for twin, _ in twins for m in twin.modules())
    assert done.stdout.split() == [str(changed)]
