"""Insertion in generated networks without batch norm; |mean|/std goes up to 100, and beyond."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from bnkit.surgery.insertion import plan_insertion
from surgery.networks import for_networks, networks


def hardest(model, plan):
    """Return the largest |mean|/std of what the batch norms get, as far as eps lets it count."""
    norms = [model.get_submodule(edit.layer).batchnorm for edit in plan.edits]
    ratios = [n.running_mean.abs() / (n.running_var + n.eps).sqrt() for n in norms]
    return max((r.max().item() for r in ratios), default=0.0)


def error(a, b):
    return ((a - b).abs().max() / (a.abs().max() or 1)).item()


@for_networks(100)
@given(networks(batch_norms=False), st.sampled_from(["before_activation", "after_activation"]))
def test_generated_networks_compute_the_same_afterwards(network, placement):
    plain, x = network.model, network.example
    batches = [x, 2 * x[:1], x + 1]
    plan = plan_insertion(plain, batches, placement=placement)
    if not plan.edits:
        assert all(left.why for left in plan.left_alone)
        return
    wide = network.double()
    exact = plan_insertion(wide.model, [b.double() for b in batches], placement=placement)
    changed, wide_changed = plan.apply(plain), exact.apply(wide.model)
    with torch.no_grad():
        truth = wide.model(wide.example)
        assert error(truth, wide_changed(wide.example)) <= 1e-12
        if hardest(changed, plan) <= 100:
            assert error(plain(x), changed(x)) <= 1e-5
    assert plan.proof.error_in_float64 <= 1e-12
