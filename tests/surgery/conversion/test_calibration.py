import math

import pytest
import torch
from torch import nn

import bnkit
from bnkit import Moments, SurgeryError
from bnkit.dataflow import ExampleError
from bnkit.observation import evaluating, observing_inputs
from bnkit.surgery.conversion import convert, plan_conversion
from zoo.checks import fingerprint, random_state

BATCHES = [
    torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64) * 2 + 1
    for n in (8, 5, 3)
]
ANY = {"where": lambda *_: True}


class Net(nn.Module):
    """Layers that are followed by a module, so that what they give is what that gets."""

    def __init__(self):
        super().__init__()
        parts = []
        for features in (3, 8):
            parts += [nn.Conv2d(features, 8, 3), nn.BatchNorm2d(8), nn.Identity(), nn.ReLU()]
        self.parts = nn.Sequential(*parts)

    def forward(self, x):
        return self.parts(x)


def trained():
    """Return a net with statistics of its data, and with weights of both signs."""
    torch.manual_seed(0)
    model = Net().double()
    for _ in range(30):
        model(torch.cat(BATCHES))
    with torch.no_grad():
        for path in (1, 5):
            model.parts[path].weight.uniform_(-1.5, 1.5)
            model.parts[path].bias.normal_()
    return model.eval()


def output_moments(model):
    """Return the moments of what the two normalisations give, over all mini-batches."""
    places = {path: model.get_submodule(path) for path in ("parts.2", "parts.6")}
    with torch.no_grad(), evaluating(model), observing_inputs(model, places) as seen:
        for batch in BATCHES:
            model(batch)
    return seen


@pytest.mark.parametrize(
    ("kind", "options"),
    [("group", {"num_groups": 2}), ("group", {"num_groups": 8}), ("instance", {})],
    ids=str,
)
def test_each_channel_keeps_its_mean_and_standard_deviation_there_and_back(kind, options):
    start = trained()
    wanted = output_moments(start)
    there = convert(start, kind, BATCHES, **options)
    back = convert(there, "bnkit", BATCHES, **ANY)
    for model in (there, back):
        for path, moments in output_moments(model).items():
            torch.testing.assert_close(moments.mean, wanted[path].mean, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(moments.variance, wanted[path].variance, rtol=1e-8, atol=0)
        for path in (1, 5):
            signs = (model.parts[path].weight.sign(), start.parts[path].weight.sign())
            assert torch.equal(*signs)


def test_a_batch_norm_made_of_another_norm_has_the_pooled_statistics_of_its_input():
    there = convert(trained(), "group", BATCHES, num_groups=2)
    back = convert(there, "torch", BATCHES, **ANY)
    norm = back.parts[1]
    with torch.no_grad():
        moments = Moments.of(back.parts[0](torch.cat(BATCHES)))
    torch.testing.assert_close(norm.running_mean, moments.mean)
    torch.testing.assert_close(norm.running_var, moments.unbiased_variance)
    assert norm.num_batches_tracked.item() == len(BATCHES)
    assert norm.track_running_stats


def test_how_far_the_output_moves_is_what_running_both_models_shows():
    start = trained()
    plan = plan_conversion(start, "group", BATCHES, num_groups=2)
    with torch.no_grad():
        before, after = (torch.cat([m(b) for b in BATCHES]) for m in (start, plan.apply(start)))
    typical = ((after - before).square().sum() / before.square().sum()).sqrt().item()
    assert math.isclose(plan.movement.typical, typical, rel_tol=1e-9)
    assert plan.movement.batches == 3
    assert plan.proof is None
    assert f"on 3 mini-batches in eval mode the output moves by {typical:.2%}" in str(plan)
    assert plan.to_json()["movement"]["typical"] == plan.movement.typical


def test_calibrated_layers_move_the_output_less_than_layers_that_only_keep_their_parameters():
    start = trained()
    plan = plan_conversion(start, "group", BATCHES, num_groups=2)

    def naive(layer):
        norm = nn.GroupNorm(2, 8).double()
        norm.weight, norm.bias = layer.weight, layer.bias
        return norm

    assert plan.movement.typical < plan_conversion(start, naive, list(BATCHES)).movement.typical


def test_a_tolerance_bounds_how_far_the_output_may_move():
    with pytest.raises(SurgeryError, match=r"the output moves by .*, and `tolerance` allows 1e-06"):
        convert(trained(), "group", BATCHES, num_groups=2, tolerance=1e-6)


def test_an_instance_norm_with_running_statistics_needs_no_calibration():
    plan = plan_conversion(trained(), "instance", BATCHES[0], track_running_stats=True)
    assert plan.movement is None
    assert plan.proof.error < 1e-12


def test_layers_without_parameters_get_some_that_do_not_train():
    start = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)).double()
    changed = convert(start, "group", BATCHES, num_groups=2)
    assert [p.requires_grad for p in changed[1].parameters()] == [False, False]
    assert changed[1].weight.dtype == torch.float64


def test_batch_norms_without_running_statistics_are_calibrated_too():
    start = nn.Sequential(bnkit.BatchNorm2d(3, track_running_stats=False)).double()
    changed = convert(start, "group", BATCHES, num_groups=3)
    moments = Moments.of(torch.cat([changed(b) for b in BATCHES]).detach())
    torch.testing.assert_close(moments.mean, torch.zeros(3).double(), rtol=0, atol=1e-9)


def test_a_constant_channel_stays_the_constant_that_it_was():
    start = trained()
    with torch.no_grad():
        start.parts[0].weight[2] = 0.0
        start.parts[1].weight[4] = 0.0
    wanted = output_moments(start)
    changed = convert(start, "group", BATCHES, num_groups=8)
    found = output_moments(changed)["parts.2"]
    torch.testing.assert_close(found.mean, wanted["parts.2"].mean)
    assert found.variance[2] < 1e-12
    assert changed.parts[1].weight[4] == 0


def test_the_model_and_the_generators_stay_as_they_are():
    start = trained().train()
    before, state = fingerprint(start), random_state()
    changed = convert(start, "group", BATCHES, num_groups=2)
    assert fingerprint(start) == before
    assert random_state() == state
    assert all(m.training for m in changed.modules())


def test_what_is_not_called_is_left_alone():
    plan = plan_conversion(Part(), "group", BATCHES, num_groups=3)
    assert [edit.layer for edit in plan.edits] == ["used"]
    assert plan.left_alone[0].why == "not called on the mini-batches, so nothing calibrates it"


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = (nn.BatchNorm2d(3).double() for _ in range(2))

    def forward(self, x):
        return self.used(x)


def test_bad_mini_batches_are_told_with_their_number_or_the_layer():
    with pytest.raises(ExampleError, match=r"the model fails on mini-batch 2: RuntimeError: "):
        convert(trained(), "group", [BATCHES[0], BATCHES[0][:, :2]], num_groups=2)
    bad = BATCHES[1].clone()
    bad[0, 0, 0, 0] = math.nan
    message = r"layer 'parts.1' gets or gives values on the mini-batches that are not finite"
    with pytest.raises(SurgeryError, match=message):
        convert(trained(), "group", [BATCHES[0], bad], num_groups=2)
    with pytest.raises(ValueError, match=r"`batches` gave no mini-batch: the list is empty"):
        convert(trained(), "group", [], num_groups=2)


def test_an_error_of_the_loader_passes_through():
    class Broken:
        def __iter__(self):
            yield BATCHES[0]
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        convert(trained(), "group", Broken(), num_groups=2)
