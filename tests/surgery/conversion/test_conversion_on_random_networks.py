"""Conversion to equivalent kinds in generated networks, there and on to another."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from bnkit.surgery.conversion import plan_conversion
from surgery.networks import for_networks, networks

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


def error(a, b):
    return ((a - b).abs().max() / (a.abs().max() or 1)).item()


def converted(network, kinds):
    """Return the model after all conversions."""
    model = network.model
    for kind in kinds:
        plan = plan_conversion(model, kind, network.example, **KINDS[kind])
        model = plan.apply(model)
        assert all(left.why for left in plan.left_alone)
        assert plan.proof is None or plan.proof.error_in_float64 <= 1e-12
    return model


@for_networks(80)
@given(networks(), st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=2))
def test_generated_networks_compute_the_same_through_any_kinds(network, kinds):
    wide = network.double()
    with torch.no_grad():
        exact = wide.model(wide.example)
        assert error(exact, converted(wide, kinds)(wide.example)) <= 1e-12
        before, after = network.model(network.example), converted(network, kinds)(network.example)
    assert error(before, after) <= 1e-5
