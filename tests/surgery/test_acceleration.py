import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit import SurgeryError, add
from bnkit.dataflow import ExampleError, duplicate
from bnkit.layers import BatchNorm1d, BatchNorm2d
from bnkit.layers.activated import key_of
from bnkit.surgery.acceleration import accelerate, plan_acceleration
from models import MODELS
from zoo.by_hand import gradients
from zoo.checks import call, converted, fingerprint, random_state

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
BLOCK = (nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
FUSED = {
    "relu": nn.ReLU(),
    "relu, in place": nn.ReLU(inplace=True),
    "leaky_relu": nn.LeakyReLU(),
    "relu6": nn.ReLU6(),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "gelu": nn.GELU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
}


def rows(plan):
    """Return what happens to each layer: the change, or why it is left alone."""
    return {e.layer: e.action for e in plan.edits} | {r.layer: r.why for r in plan.left_alone}


def same_training(model, fast, example, *, rtol=1e-9):
    """Compare a step of training in float64: outputs, gradients, and the statistics after it."""
    models = [copy.deepcopy(m).double().train() for m in (model, fast)]
    wide = converted(example, torch.float64)
    for ours, theirs in zip(*(call(m, wide) for m in models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)
    found = [{key_of(m, name): g for name, g in gradients(m, wide).items()} for m in models]
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=rtol, atol=rtol)
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], value, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("activation", FUSED.values(), ids=FUSED)
def test_a_module_that_alone_reads_it_is_fused_and_becomes_an_identity(activation):
    model = nn.Sequential(*BLOCK, activation, nn.Flatten())
    fast = accelerate(model, IMAGES)
    assert isinstance(fast[1], BatchNorm2d)
    assert type(fast[1].activation) is str
    assert isinstance(fast[2], nn.Identity)
    assert fast.state_dict().keys() == model.state_dict().keys()
    same_training(model, fast, IMAGES)


@pytest.mark.parametrize(
    "activation",
    [nn.LeakyReLU(0.2), nn.GELU(approximate="tanh"), nn.ELU(), nn.PReLU(), nn.Softmax(1)],
    ids=str,
)
def test_an_activation_that_bnkit_does_not_compute_stays(activation):
    model = nn.Sequential(*BLOCK, activation)
    plan = plan_acceleration(model, IMAGES)
    assert rows(plan) == {"1": "bnkit's"}
    assert f"'2' ({type(activation).__name__}) is not one that bnkit computes" in plan.edits[0].why
    same_training(model, plan.apply(model), IMAGES)


class Net(nn.Module):
    def __init__(self, run, *, activation=None):
        super().__init__()
        self.conv, self.bn = copy.deepcopy(BLOCK)
        self.act, self.run = activation or nn.ReLU(), run

    def forward(self, x):
        return self.run(self, self.bn(self.conv(x)))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda _, y: F.relu(y), "relu() is not a module, and twice is no faster"),
        (lambda net, y: net.act(y) + net.act(y * 2), "several read what it makes"),
        (lambda net, y: net.act(net.act(y)), "'act' (ReLU) serves several places"),
        (lambda net, y: net.act(y) + y, "several read what it makes"),
        (lambda net, y: (y, net.act(y)), "several read what it makes"),
        (lambda net, y: net.act(F.dropout(y, 0.5, training=net.training)), "no activation follow"),
        (lambda net, y: net.act(F.dropout(y, 0.5) if net.training else y), "no activation follow"),
        (lambda net, y: net.act(-y), "no activation follows, but neg()"),
        (lambda _, y: y, "nothing reads what it makes"),
    ],
    ids=[
        "a function",
        "two readers",
        "called twice",
        "read beside",
        "leaves the model",
        "dropout between",
        "dropout between in training only",
        "something between",
        "nothing follows",
    ],
)
def test_what_cannot_be_fused_stays_where_it_is(run, reason):
    model = Net(run)
    plan = plan_acceleration(model, IMAGES)
    assert rows(plan) == {"bn": "bnkit's"}
    assert reason in plan.edits[0].why
    same_training(model, plan.apply(model), IMAGES)


def test_another_activation_in_training_is_seen():
    model = Net(lambda net, y: net.act(y) if net.training else net.other(y))
    model.other = nn.ReLU()
    plan = plan_acceleration(model, IMAGES)
    assert plan.edits[0].why == "in training mode 'act' reads it instead"


def test_where_training_fails_on_the_example_the_plan_says_so():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU())
    plan = plan_acceleration(model, torch.randn(1, 4))
    assert rows(plan) == {"1": "bnkit's, with relu of '2'"}
    assert plan.edits[0].why.endswith("(seen in eval mode: training fails on the example)")


def test_hooks_keep_what_they_look_at():
    model = nn.Sequential(*copy.deepcopy(BLOCK), nn.ReLU())
    seen = []
    model[1].register_forward_hook(lambda *call: seen.append(call[-1].min().item()))
    fast = accelerate(model, IMAGES)
    seen.clear()
    fast(IMAGES)
    assert seen[0] < 0
    assert isinstance(fast[2], nn.ReLU)
    other = nn.Sequential(*copy.deepcopy(BLOCK), nn.ReLU())
    other[2].register_forward_pre_hook(lambda *_: None)
    assert plan_acceleration(other, IMAGES).edits[0].why == "a hook looks at '2' (ReLU)"


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_what_is_left_alone_is_listed():
    frozen = nn.BatchNorm2d(3)
    frozen.forward = lambda x: x
    model = nn.Sequential(
        Doubled(3), frozen, nn.BatchNorm2d(3), BatchNorm2d(3, activation="relu"), nn.Conv2d(3, 3, 1)
    )
    plan = plan_acceleration(model, IMAGES, where=lambda path, _: path != "2")
    assert rows(plan) == {
        "0": "of a class of its own, which does not compute what torch's does in both modes",
        "1": "its forward is set on the instance",
        "2": "`where` did not choose it",
        "3.norm": "bnkit's already, and it has an activation",
    }


def test_the_batch_norms_that_add_puts_in_are_fused_too():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.Tanh())
    twin = add(nn.Sequential(*plain, nn.Linear(5, 2)), IMAGES)
    plan = plan_acceleration(twin, IMAGES)
    assert rows(plan) == {
        "0.batchnorm": "bnkit's, with relu of '1'",
        "3.batchnorm": "bnkit's, with tanh of '4'",
    }
    same_training(twin, plan.apply(twin), IMAGES)


def test_options_state_modes_and_training_flags_are_kept():
    layer = nn.BatchNorm1d(3, eps=1e-3, momentum=None).eval()
    layer.weight.requires_grad_(requires_grad=False)
    model = nn.Sequential(nn.Linear(3, 3), layer, nn.ReLU())
    layer.num_batches_tracked += 7
    fast = accelerate(model, torch.randn(5, 3))[1]
    assert isinstance(fast, BatchNorm1d)
    assert (fast.eps, fast.momentum, fast.training, fast.guard) == (1e-3, None, False, False)
    assert (fast.weight.requires_grad, fast.bias.requires_grad) == (False, True)
    assert fast.num_batches_tracked == 7


def test_a_batch_norm_that_the_example_does_not_reach_is_exchanged_all_the_same():
    model = Net(lambda net, y: net.act(y))
    model.spare = nn.BatchNorm2d(3)
    plan = plan_acceleration(model, IMAGES)
    assert [edit.why for edit in plan.edits if edit.layer == "spare"] == [
        "not called on this example"
    ]


def test_a_model_that_fails_on_the_example_is_refused():
    with pytest.raises(ExampleError, match=re.escape("the model fails on `example` of shape (2,")):
        accelerate(nn.Sequential(*BLOCK), torch.zeros(2, 5, 6, 6))


def test_a_difference_over_the_tolerance_is_refused():
    class Random(nn.Module):
        def forward(self, x):
            return x + next(self.numbers)

    model = nn.Sequential(*BLOCK, nn.ReLU(), Random())
    Random.numbers = iter(range(100))
    with pytest.raises(SurgeryError, match="does not"):
        accelerate(model, IMAGES)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_every_model_of_the_zoo_trains_as_before(model):
    plain, example = model.seeded(), model.example()
    subject = add(plain, example) if model.before else plain
    before, shown, state = fingerprint(subject), repr(example), random_state()
    fast = accelerate(subject, example)
    assert fingerprint(subject) == before
    assert repr(example) == shown
    assert random_state() == state
    assert fast.state_dict().keys() == subject.state_dict().keys()
    if plan_acceleration(subject, example).edits:
        same_training(duplicate(subject), duplicate(fast), example, rtol=1e-8)
