"""Folding and removal keep the function of random networks: kinds, groups, residuals, sharing."""

import pytest
import torch
from hypothesis import given

from bnkit.surgery.folding import plan_folding
from bnkit.surgery.removal import plan_removal
from surgery.networks import OwnForward, for_networks, networks


def error(exact, other):
    return ((other - exact).abs().max() / exact.abs().max().clamp_min(1e-30)).item()


def state_of_batch_norms(model):
    """Return the paths of what has running statistics and is no function."""
    return {
        path
        for path, part in model.named_modules()
        if hasattr(part, "running_mean") and type(part).__name__ != "ByFunction"
    }


@pytest.mark.parametrize("plan_change", [plan_folding, plan_removal])
@for_networks(120)
@given(network=networks())
def test_the_function_stays(plan_change, network):
    plan = plan_change(network.model, network.example, tolerance=1.0)
    wide = network.double()
    with torch.no_grad():
        exact = wide.model(wide.example)
        changed = plan.apply(wide.model)(wide.example)
        own, rounded = (
            model(network.example).double() for model in (network.model, plan.apply(network.model))
        )
    assert error(exact, changed) <= 1e-12
    # Where the model itself rounds by more than 1e-5, the changed one does not lose much more.
    assert error(exact, rounded) <= max(1e-5, 10 * error(exact, own))
    if plan.edits:
        assert error(own, rounded) == pytest.approx(plan.proof.error, rel=1e-6)


@for_networks(120)
@given(network=networks())
def test_all_batch_norms_of_known_classes_are_removed(network):
    plan = plan_removal(network.model, network.example, tolerance=1.0)
    left = state_of_batch_norms(plan.apply(network.model))
    assert left == {
        path
        for path in state_of_batch_norms(network.model)
        if isinstance(network.model.get_submodule(path), OwnForward)
    }
