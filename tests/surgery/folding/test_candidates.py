import pytest
import torch
from torch import nn

from bnkit.dataflow import trace
from bnkit.layers import BatchNorm1d, BatchNorm2d
from bnkit.layers.domains import DomainBatchNorm1d, domain
from bnkit.layers.frozen import FrozenBatchNorm2d
from bnkit.layers.masked import MaskedBatchNorm1d
from bnkit.surgery import add
from bnkit.surgery.folding import fold, plan_folding
from bnkit.surgery.folding.candidates import (
    find_candidates,
    functional_batch_norms,
    objection_to_batch_norm,
)
from surgery.folding.states import randomised


def images():
    return torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def objection(norm, example=None):
    """Return why this batch norm after a conv or dense layer is not known."""
    dense = isinstance(norm, nn.BatchNorm1d)
    model = nn.Sequential(nn.Linear(4, 4) if dense else nn.Conv2d(4, 4, 1), norm)
    example = (torch.randn(3, 4) if dense else images()) if example is None else example
    flow = trace(model, example)
    (candidate,) = find_candidates(model, flow)
    return objection_to_batch_norm(candidate, flow)


class FrozenBatchNorm(nn.Module):
    """As libraries for detection have it."""

    def __init__(self, features, *, without=(), eps=1e-5, power=1):
        super().__init__()
        self.power = power
        if eps is not None:
            self.eps = eps
        for name in {"weight", "bias", "running_mean", "running_var"} - {*without}:
            self.register_buffer(name, torch.rand(features) + 0.5)

    def forward(self, x):
        weight, bias, mean, variance = (
            getattr(self, name, torch.ones(4)).reshape(1, -1, 1, 1)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight * (variance + getattr(self, "eps", 1e-5)).rsqrt()
        return (x * scale + (bias - mean * scale)) ** self.power


class Patched(nn.BatchNorm2d):
    """Computes the same, which a trial shows."""

    def forward(self, x):
        return super().forward(x)


class Named(nn.BatchNorm2d):
    """A subclass that computes what its base does."""


@pytest.mark.parametrize(
    "norm",
    [
        *[nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nn.BatchNorm2d(4, affine=False), Named(4)],
        *[BatchNorm2d(4, activation="relu"), FrozenBatchNorm2d(4), FrozenBatchNorm(4)],
        *[FrozenBatchNorm(4).bfloat16(), FrozenBatchNorm(4, eps=None), Patched(4)],
        FrozenBatchNorm(4, without=["running_mean", "weight"]),
    ],
    ids=str,
)
def test_batch_norms_that_are_their_state_in_eval_mode_are_known(norm):
    assert objection(norm) is None


def with_flag_off():
    norm = nn.BatchNorm2d(4)
    norm.track_running_stats = False  # torch takes the running statistics all the same
    return norm


def test_running_statistics_count_and_not_the_flag():
    assert objection(with_flag_off()) is None


def hooked():
    norm = nn.BatchNorm2d(4)
    norm.register_forward_pre_hook(lambda *_: None)
    return norm


def set_on_the_instance():
    norm = nn.BatchNorm2d(4)
    norm.forward = torch.relu
    return norm


def parametrised():
    norm = nn.BatchNorm2d(4)
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus())
    return norm


def with_state(name, value):
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        getattr(norm, name)[1] = value
    return norm


UNKNOWN = {
    "batch statistics": (
        nn.BatchNorm2d(4, track_running_stats=False),
        "it has no running statistics: even in eval mode it uses those of the mini-batch",
    ),
    "padding is hidden": (MaskedBatchNorm1d(4), "its class has a forward of its own"),
    "forward on the instance": (set_on_the_instance(), "its forward is set on the instance"),
    "hooks": (hooked(), "hooks are registered on it, which see or change what it gets and gives"),
    "computed": (parametrised(), "its weight or bias is computed (weight norm"),
    "infinite variance": (with_state("running_var", -1.0), "not finite numbers, or its variance"),
    "mean that is not finite": (with_state("running_mean", torch.nan), "are not finite numbers"),
    "infinite weight": (with_state("weight", torch.inf), "are not finite numbers"),
    "other function": (
        FrozenBatchNorm(4, power=2),
        "which a trial does not show to be an affine map of each channel",
    ),
}


@pytest.mark.parametrize(("norm", "why"), UNKNOWN.values(), ids=UNKNOWN)
def test_batch_norms_of_which_that_is_unknown_have_a_reason(norm, why):
    assert why in objection(norm)


def test_the_model_itself_cannot_be_replaced():
    norm = nn.BatchNorm1d(4)
    flow = trace(norm, torch.randn(3, 4))
    (candidate,) = find_candidates(norm, flow)
    assert objection_to_batch_norm(candidate, flow).startswith("it is the model itself")


class Reading(nn.Module):
    def __init__(self, *, keyword=False):
        super().__init__()
        self.fc, self.norm, self.keyword = nn.Linear(4, 4), BatchNorm1d(4), keyword

    def forward(self, x):
        if self.keyword:
            return self.norm(input=self.fc(x))
        return self.norm(self.fc(x)) - self.norm.running_mean


def test_a_batch_norm_whose_statistics_are_read_stays():
    model = Reading()
    flow = trace(model, torch.randn(3, 4))
    (candidate,) = find_candidates(model, flow)
    assert objection_to_batch_norm(candidate, flow) == "sub() reads its parameters or statistics"


def test_a_keyword_that_other_layers_know_is_no_obstacle():
    model = randomised(Reading(keyword=True))
    x = torch.randn(3, 4)
    torch.testing.assert_close(fold(model, x)(x), model(x), rtol=1e-5, atol=1e-5)


def test_own_batch_norms_are_found_with_their_owners():
    model = add(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(3, 4))
    model.append(nn.BatchNorm1d(4))
    flow = trace(model, torch.randn(3, 4))
    candidates = [
        (s.path, s.owner, s.kind, [c.name for c in s.calls]) for s in find_candidates(model, flow)
    ]
    assert candidates == [
        ("0.batchnorm", "0", "BatchNorm1d", ["0"]),
        ("3", None, "BatchNorm1d", ["3"]),
    ]
    assert list(functional_batch_norms(flow)) == []


def test_a_batch_norm_of_several_domains_is_folded_for_the_chosen_one():
    model = nn.Sequential(nn.Linear(4, 4), DomainBatchNorm1d(4, domains=("day", "night")))
    with domain(model, "night"):
        randomised(model)
    x = torch.randn(3, 4)
    with domain(model, "night"):
        plan = plan_folding(model, x)
        folded, night = plan.apply(model), model(x)
    assert plan.edits[0].action == "fold into '0' (Linear), of the domain 'night'"
    torch.testing.assert_close(folded(x), night, rtol=1e-5, atol=1e-5)
    assert (folded(x) - model(x)).abs().max() > 0.1  # of the day
