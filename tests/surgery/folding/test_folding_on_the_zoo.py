"""Every model of the zoo, and its twins of `add` with batch norms in a random state."""

import re

import pytest
import torch

from bnkit.dataflow import duplicate
from bnkit.internals import AnyBatchNorm
from bnkit.roles import is_batch_norm
from bnkit.surgery import add
from bnkit.surgery.folding import plan_folding
from bnkit.surgery.removal import plan_removal
from models import MODELS
from zoo.checks import call, converted, fingerprint, memory, random_state

PLACEMENTS = ("before_activation", "after_activation")
PLANNERS = pytest.mark.parametrize("plan_change", [plan_folding, plan_removal])
TWINS = [
    pytest.param(model, placement, id=f"{model}, {placement}")
    for model in MODELS
    for placement, paths in zip(PLACEMENTS, (model.before, model.after), strict=True)
    if paths
]


def batch_norms(model):
    return {path for path, module in model.named_modules() if is_batch_norm(module)}


def with_random_state(model):
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, AnyBatchNorm) and module.running_mean is not None:
            like = {"generator": generator, "dtype": torch.float64}
            with torch.no_grad():
                for tensor in (module.running_mean, module.weight, module.bias):
                    if tensor is not None:
                        tensor.copy_(torch.randn(module.num_features, **like))
                module.running_var.copy_(torch.rand(module.num_features, **like) + 0.5)
    return model


def assert_same(model, plan, example):
    """Assert that the plan keeps the function in float64, or in the only dtype that it knows."""
    wide = duplicate(model).double().eval(), converted(example, torch.float64), 1e-12
    own = duplicate(model).eval(), example, 1e-5
    for net, inputs, tolerance in (wide, own):
        try:
            expected = call(net, inputs)
        except RuntimeError:  # a dtype is written into it
            continue
        changed = plan.apply(net)
        torch.testing.assert_close(
            call(changed, inputs), expected, rtol=tolerance, atol=tolerance, equal_nan=True
        )


@PLANNERS
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_the_batch_norms_of_a_model_are_taken_out_or_listed(model, plan_change):
    net, example = with_random_state(model.seeded()), model.example()
    before, state = fingerprint(net), random_state()
    plan = plan_change(net, example)
    changed = plan.apply(net)
    listed = {left.layer for left in plan.left_alone}
    assert batch_norms(changed) <= listed
    assert {edit.layer for edit in plan.edits} == batch_norms(net) - listed
    assert (fingerprint(net), random_state()) == (before, state)
    assert memory(changed).isdisjoint(memory(net))


@pytest.mark.parametrize(("model", "placement"), TWINS)
def test_layers_of_twins_take_their_batch_norms_in_and_get_their_classes_back(model, placement):
    plain, example = model.seeded(), model.example()
    twin = with_random_state(add(plain, example, placement=placement))
    plan = plan_folding(twin, example)
    folded = plan.apply(twin)
    assert_same(twin, plan, example)
    reasons = {left.layer: left.why for left in plan.left_alone}
    if placement == "before_activation":
        own = {path for path in reasons if path.removesuffix(".batchnorm") in model.before}
        assert [p for p in own if not re.search("forward of its own|hooks", reasons[p])] == []
    for path in model.before if placement == "before_activation" else model.after:
        if f"{path}.batchnorm" not in reasons:
            assert type(folded.get_submodule(path)) is type(plain.get_submodule(path))


@pytest.mark.parametrize(("model", "placement"), TWINS[::6])
def test_nothing_of_twins_remains(model, placement):
    plain, example = model.seeded(), model.example()
    twin = with_random_state(add(plain, example, placement=placement))
    plan = plan_removal(twin, example)
    listed = {left.layer for left in plan.left_alone}
    assert batch_norms(plan.apply(twin)) == batch_norms(plain) & listed
    assert_same(twin, plan, example)
