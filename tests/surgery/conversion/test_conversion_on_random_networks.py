"""Conversion to equivalent kinds in generated networks, there and on to another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnkit.surgery.conversion import plan_conversion
from surgery.networks import FrozenBatchNorm, for_networks, networks
from surgery.sameness import EXACT, Tally

KINDS = {
    "torch": {},
    "bnkit": {},
    "sync": {},
    "ghost": {"virtual_batch_size": 2},
    "renorm": {},
    "masked": {"default": "all"},
    "accumulated": {"micro_batches": 2},
    "domains": {"domains": ("a", "b")},
    "frozen": {},
}


def converted(network, kinds):
    """Return the model after all conversions."""
    model = network.model
    for kind in kinds:
        plan = plan_conversion(model, kind, network.example, tolerance=1.0, **KINDS[kind])
        model = plan.apply(model)
        assert all(left.why for left in plan.left_alone)
        assert plan.proof is None or plan.proof.error_in_float64 <= EXACT
    return model


def has_foreign_batch_norm(model):
    return any(isinstance(part, FrozenBatchNorm) for part in model.modules())


@pytest.mark.usefixtures("torchs_kernels")  # the proof is compared to 12 digits
def test_generated_networks_compute_the_same_through_any_kinds():
    tally = Tally()

    @for_networks(120)
    @given(networks(), st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=2))
    def check(network, kinds):
        exact = converted(network.double(), kinds)
        found = tally.check(network, converted(network, kinds), exact)
        # Only another library's layer, which computes a·x + b, may round otherwise than ours.
        assert has_foreign_batch_norm(network.model) or found == 0

    check()
    tally.finish()
