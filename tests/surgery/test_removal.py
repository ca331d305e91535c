import json

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnkit.layers import BatchNorm1d, BatchNorm2d
from bnkit.layers.affine import ChannelAffine
from bnkit.surgery import SurgeryError, add
from bnkit.surgery.folding import fold_away
from bnkit.surgery.removal import plan_removal, remove, use_channel_affine
from surgery.folding.states import randomised
from zoo.checks import fingerprint, random_state

UNSEEN = "not called on this example in eval mode, or only inside a layer that is one step"
STANDS = "stands between it and a weight layer"
READ = "what relu() makes is read by 'shared' (BatchNorm2d) and by 'sum.norm' (BatchNorm2d)"
TWICE = "called 2 times in one forward"


def vectors():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Batch norms that can be folded, and that cannot: shared, not called, padded, with a sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)
        self.shared, self.unused = nn.BatchNorm2d(4, eps=0.1), BatchNorm2d(4, activation="silu")
        self.sum = BatchNorm2d(4, activation="relu")
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        y = self.shared(self.conv(self.shared(x)))
        return self.sum(y.abs(), x)


def images():
    return torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def assert_same(changed, model, x):
    torch.testing.assert_close(changed.eval()(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_all_batch_norms_go_and_the_function_stays():
    model = randomised(Net())
    before, state = fingerprint(model), random_state()
    plain = remove(model, images())
    assert (fingerprint(model), random_state()) == (before, state)
    assert not any(isinstance(module, _BatchNorm) for module in plain.modules())
    assert isinstance(plain.norm, nn.Identity)
    assert all(
        isinstance(part, ChannelAffine)
        for part in (plain.shared, plain.unused.norm, plain.sum.norm)
    )
    assert_same(plain, model, images())
    torch.testing.assert_close(plain.unused(images()), model.unused(images()), rtol=1e-5, atol=1e-5)


def test_the_plan_says_why_a_batch_norm_is_not_folded():
    plan = plan_removal(randomised(Net()), images())
    assert {edit.layer: (edit.action, edit.why) for edit in plan.edits} == {
        "norm": ("fold into 'stem' (Conv2d)", "the layer before it"),
        "shared": (
            "become ChannelAffine(4)",
            f"no layer takes it in: before it: at call 1: {READ}; after it: {TWICE}",
        ),
        "unused.norm": (
            "become ChannelAffine(4)",
            f"no layer takes it in: {UNSEEN}",
        ),
        "sum.norm": (
            "become ChannelAffine(4)",
            f"no layer takes it in: before it: abs() {STANDS}; after it: it ends in a residual",
        ),
    }
    assert plan.proof.error_in_float64 <= 1e-12


def test_the_structure_of_a_plan_makes_the_keys_of_its_checkpoint():
    plan = plan_removal(Net(), images())
    changed = plan.apply(randomised(Net()))
    fresh, operations = Net(), {f.__name__: f for f in (fold_away, use_channel_affine)}
    for edit in json.loads(json.dumps(plan.to_json()))["edits"]:
        options = edit["structure"]
        operations[options.pop("operation")](fresh, options.pop("layer"), **options)
    fresh.load_state_dict(changed.state_dict())
    assert_same(fresh, changed, images())


def test_own_batch_norms_that_no_layer_takes_in_become_maps_in_their_place():
    plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    x = torch.randn(5, 6, 4)
    model = randomised(add(plain, x, placement="after_activation"))
    removed = remove(model, x)
    assert isinstance(removed[1].batchnorm, ChannelAffine)
    assert_same(removed, model, x)


class ConvWithNorm(nn.Conv2d):
    """A conv that calls its normalisation itself, as other libraries' do."""

    def __init__(self, norm):
        super().__init__(4, 4, 1)
        self.norm = norm

    def forward(self, x):
        return self.norm(super().forward(x))


def test_a_batch_norm_inside_a_layer_that_is_one_step_becomes_a_map_there():
    model = randomised(ConvWithNorm(nn.BatchNorm2d(4)))
    removed = remove(model, images())
    assert isinstance(removed.norm, ChannelAffine)
    assert_same(removed, model, images())


@pytest.mark.parametrize("weight", [True, False])
def test_what_trained_trains(weight):
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Tanh())
    model[1].weight.requires_grad_(weight)
    made = remove(model, vectors())[1]
    assert (made.weight.requires_grad, made.bias.requires_grad) == (weight, True)
    fixed = remove(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4, affine=False)), vectors())[1]
    assert not any(p.requires_grad for p in fixed.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_maps_have_the_dtype_of_the_statistics(dtype):
    model = nn.Sequential(nn.ReLU(), randomised(nn.BatchNorm1d(4)).to(dtype))
    made = remove(model, vectors().to(dtype))[1]
    assert {t.dtype for t in made.state_dict().values()} == {dtype}


def test_what_needs_the_mini_batch_stays_and_is_listed():
    model = nn.Sequential(
        nn.Linear(4, 3),
        BatchNorm1d(3, track_running_stats=False),
        nn.ReLU(),
        nn.BatchNorm1d(3),
        nn.Tanh(),
    )
    plan = plan_removal(model, vectors())
    assert [(left.layer, left.why) for left in plan.left_alone] == [
        (
            "1",
            "it has no running statistics: even in eval mode it uses those of the mini-batch",
        )
    ]
    assert_same(plan.apply(model), model, vectors())


def test_where_chooses():
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Tanh(), nn.BatchNorm1d(4))
    removed = remove(model, vectors(), where=lambda path, _: path == "3")
    assert [type(m).__name__ for m in removed] == ["ReLU", "BatchNorm1d", "Tanh", "ChannelAffine"]


def test_nothing_to_remove_is_an_error():
    with pytest.raises(SurgeryError, match=r"nothing in this model can be removed: it has no bat"):
        remove(nn.Linear(4, 3), vectors())
    message = r"nothing in this model can be removed\. the model \(BatchNorm1d\): it is the model"
    with pytest.raises(SurgeryError, match=message):
        remove(nn.BatchNorm1d(4), vectors())


def test_a_removed_model_trains_where_gradients_were_off():
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Tanh())
    with torch.inference_mode():
        removed = remove(model, vectors())
    removed(vectors()).sum().backward()
    assert removed[1].weight.grad is not None
