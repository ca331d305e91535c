"""Folding and removal keep the function of random networks: kinds, groups, residuals, sharing."""

import pytest
from hypothesis import given

from bnkit.surgery.folding import plan_folding
from bnkit.surgery.removal import plan_removal
from surgery.networks import OwnForward, for_networks, networks
from surgery.sameness import Tally


def state_of_batch_norms(model):
    """Return the paths of what has running statistics and is no function."""
    return {
        path
        for path, part in model.named_modules()
        if hasattr(part, "running_mean") and type(part).__name__ != "ByFunction"
    }


@pytest.mark.usefixtures("torchs_kernels")  # the proof is compared to 12 digits
@pytest.mark.parametrize("plan_change", [plan_folding, plan_removal])
def test_the_function_stays(plan_change):
    tally = Tally()

    @for_networks(150)
    @given(network=networks())
    def check(network):
        plan = plan_change(network.model, network.example, tolerance=1.0)
        changed, exact = (plan.apply(n.model) for n in (network, network.double()))
        found = tally.check(network, changed, exact)
        if plan.edits:
            assert plan.proof.error == pytest.approx(found, rel=1e-6)  # stated, however large

    check()
    tally.finish()


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
