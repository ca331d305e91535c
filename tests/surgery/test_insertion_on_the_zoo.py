import pytest
import torch

from bnkit import SurgeryError
from bnkit.dataflow import as_call, duplicate
from bnkit.dataflow.tensors import replace_tensors
from bnkit.surgery.insertion import insert, plan_insertion
from models import MODELS
from zoo.checks import call, fingerprint, random_state

PLACEMENTS = ("before_activation", "after_activation")
CHANGED, UNCHANGED = (
    [
        pytest.param(model, placement, paths, id=f"{model}, {placement}")
        for model in MODELS
        for placement, paths in zip(PLACEMENTS, (model.before, model.after), strict=True)
        if bool(paths) is changed
    ]
    for changed in (True, False)
)


def batches_of(model):
    """Return two mini-batches; the second has other numbers, where the model takes real ones."""
    half = replace_tensors(model.example(), lambda t: t / 2 if t.is_floating_point() else t)
    return [model.example(), half]


@pytest.mark.parametrize(("model", "placement", "paths"), CHANGED)
def test_every_model_computes_the_same_afterwards(model, placement, paths):
    plain, batches = model.seeded().eval(), batches_of(model)
    before, shown, state = fingerprint(plain), repr(batches), random_state()
    plan = plan_insertion(plain, batches, placement=placement, inputs=as_call)
    assert (fingerprint(plain), repr(batches), random_state()) == (before, shown, state)
    assert {edit.layer for edit in plan.edits} == paths
    assert plan.proof.error <= 1e-6
    assert plan.proof.error_in_float64 <= 1e-12
    assert plan.in_training_mode.error < 1e6
    changed = plan.apply(plain)
    for batch in batches:
        expected, found = (call(duplicate(net), batch) for net in (plain, changed))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("model", "placement", "paths"), UNCHANGED)
def test_a_model_in_which_nothing_can_be_normalised_is_refused(model, placement, paths):
    assert not paths
    with pytest.raises(SurgeryError, match="nothing in this model can be normalised"):
        insert(model.seeded(), batches_of(model), placement=placement, inputs=as_call)
