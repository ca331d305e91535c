"""Insertion in generated networks without batch norm; |mean|/std goes up to 100, and beyond."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit.surgery.insertion import plan_insertion
from surgery.networks import for_networks, networks
from surgery.sameness import EXACT, Tally

PLACEMENTS = ["before_activation", "after_activation"]


@pytest.mark.usefixtures("torchs_kernels")  # the proof is compared to 12 digits
def test_generated_networks_compute_the_same_afterwards():
    tally = Tally()

    @for_networks(120)
    @given(networks(batch_norms=False), st.sampled_from(PLACEMENTS))
    def check(network, placement):
        batches = [network.example, 2 * network.example[:1], network.example + 1]
        plan = plan_insertion(network.model, batches, placement=placement, tolerance=1.0)
        if not plan.edits:
            assert all(left.why for left in plan.left_alone)
            return
        wide = network.double()
        exact = plan_insertion(wide.model, [b.double() for b in batches], placement=placement)
        found = tally.check(network, plan.apply(network.model), exact.apply(wide.model))
        assert plan.proof.error_in_float64 <= EXACT
        assert plan.proof.error == pytest.approx(found, rel=1e-6)  # stated, however large

    check()
    tally.finish()
