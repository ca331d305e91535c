import base64
import copy
import pickle
import zlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import symbolic_trace
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval
from torch.nn.utils.parametrize import register_parametrization

import bnkit
from bnkit.kernels.activations import find_activation
from bnkit.layers import (
    AccumulatedBatchNorm2d,
    DomainBatchNorm2d,
    FrozenBatchNorm2d,
    GhostBatchNorm2d,
    MaskedBatchNorm2d,
    SyncBatchNorm2d,
)
from bnkit.layers.activated import ActivatedNorm, disclose, enclose, key_of
from layers.old_pickles import CONVERTED, OURS

IMAGES = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0))
KINDS = {
    "plain": bnkit.BatchNorm2d,
    "ghost": lambda *a, **k: GhostBatchNorm2d(*a, virtual_batch_size=3, **k),
    "renorm": bnkit.layers.BatchRenorm2d,
    "masked": lambda *a, **k: MaskedBatchNorm2d(*a, default="all", **k),
    "accumulated": lambda *a, **k: AccumulatedBatchNorm2d(*a, micro_batches=2, **k),
    "domains": lambda *a, **k: DomainBatchNorm2d(*a, domains=("day", "night"), **k),
    "frozen": FrozenBatchNorm2d,
    "sync": SyncBatchNorm2d,
}


def randomised(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model


class Net(nn.Module):
    """A plain batch norm, one with an activation, one with a residual and an activation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn1 = bnkit.BatchNorm2d(4, activation="silu")
        self.bn2 = bnkit.BatchNorm2d(4)
        self.bn3 = bnkit.BatchNorm2d(4, activation="relu")

    def forward(self, x):
        y = self.bn2(self.bn1(self.conv(x)))
        return self.bn3(y, x)


# The tools of others, as they are or by their pattern: each replaces batch norms by their class.


class TheirFrozen(nn.Module):
    """As detectron2, torchvision and timm write a frozen batch norm."""

    def __init__(self, norm):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).data.clone())
        self.eps = norm.eps

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[None, :, None, None] + shift[None, :, None, None]


def by_children(module, make=TheirFrozen):
    """The recursion of detectron2's convert_frozen_batchnorm and timm's freeze_batch_norm_2d."""
    made = module
    if isinstance(module, (_BatchNorm, nn.SyncBatchNorm)):
        return make(module)
    for name, child in module.named_children():
        new = by_children(child, make)
        if new is not child:
            made.add_module(name, new)
    return made


def by_names(model):
    """The other usual recursion: named_modules, and setattr on the parent."""
    for path, module in list(model.named_modules()):
        if isinstance(module, _BatchNorm):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, TheirFrozen(module))
    return model


def without_running_statistics(model):
    """torch.func's patch of batch norms for per-sample gradients, and back."""
    torch.func.replace_all_batch_norm_modules_(copy.deepcopy(model))
    return model


TOOLS = {
    "SyncBatchNorm.convert_sync_batchnorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "frozen by children": by_children,
    "frozen by names": by_names,
    "batch norms of torch": lambda m: bnkit.convert(m, "frozen", IMAGES),
    "per-sample gradients": without_running_statistics,
}


@pytest.mark.parametrize("activation", ["relu", "silu", "sigmoid"])
@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
def test_no_tool_that_replaces_batch_norms_drops_the_activation(tool, activation):
    plain = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), bnkit.layers.affine.activation_module(activation)
    )
    model = bnkit.accelerate(randomised(plain).eval(), IMAGES)
    expected = model(IMAGES)
    changed = tool(copy.deepcopy(model))
    torch.testing.assert_close(changed(IMAGES), expected, rtol=1e-5, atol=1e-5)
    assert changed.state_dict().keys() >= {"1.weight", "1.bias", "1.running_mean"}


def test_a_residual_is_kept_or_refused():
    model = randomised(Net()).eval()
    expected = model(IMAGES)
    torch.testing.assert_close(by_children(copy.deepcopy(model))(IMAGES), expected)
    called = nn.SyncBatchNorm.convert_sync_batchnorm(bnkit.BatchNorm2d(4))
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        called.eval()(IMAGES, IMAGES)


def test_torchs_fusion_takes_the_batch_norm_only():
    conv, layer = randomised(nn.Conv2d(4, 4, 3)).eval(), bnkit.BatchNorm2d(4, activation="relu")
    layer = randomised(layer).eval()
    fused = fuse_conv_bn_eval(conv, layer.norm)
    torch.testing.assert_close(F.relu(fused(IMAGES)), layer(conv(IMAGES)))


@pytest.mark.parametrize("freeze", [lambda m: m.eval(), lambda m: m.requires_grad_(False)])
def test_a_loop_over_batch_norms_reaches_what_is_inside(freeze):
    model = Net().train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            freeze(module)
    before = copy.deepcopy(model.state_dict())
    model(IMAGES)
    moved = any(not torch.equal(before[k], v) for k, v in model.state_dict().items())
    frozen = not any(p.requires_grad for p in model.bn1.parameters())
    assert (not moved) or frozen


# What it is


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_is_of_our_class_and_not_of_torchs(kind):
    layer, plain = kind(4, activation="relu"), kind(4)
    assert type(layer) is ActivatedNorm
    assert type(layer.norm) is type(plain)
    assert isinstance(layer, type(plain))
    assert isinstance(plain, _BatchNorm)
    assert not isinstance(layer, _BatchNorm)
    assert not isinstance(layer, bnkit.BatchNorm1d)
    assert repr(layer) == f"{repr(plain)[:-1]}, activation='relu')"
    assert list(layer.state_dict()) == list(plain.state_dict())
    assert (layer.activation, plain.activation) == ("relu", None)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_computes_norm_then_residual_then_activation(kind, activation, training, hooked):
    layer = randomised(kind(4, activation=activation)).train(training)
    plain = copy.deepcopy(layer.norm)
    if hooked:
        seen = []
        layer.norm.register_forward_hook(lambda *call: seen.append(call[-1].detach()))
    x, residual = (IMAGES.clone().requires_grad_() for _ in range(2))
    y = layer(x, residual)
    expected = find_activation(activation).function(plain(x) + residual)
    torch.testing.assert_close(y, expected)
    for got, wanted in zip(
        *(torch.autograd.grad(out.square().sum(), (x, residual)) for out in (y, expected)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)
    if hooked:
        torch.testing.assert_close(seen[0], plain.eval()(x) + residual) if not training else None
        assert len(seen) == 1


def test_padding_stays_zero_where_hooks_look_on():
    layer = MaskedBatchNorm2d(4, activation="sigmoid")
    real = torch.ones(6, 5, 5, dtype=torch.bool)
    real[:, :, 3:] = False
    expected = layer(IMAGES, mask=real)
    layer.norm.register_forward_hook(lambda *_: None)
    assert expected[..., 3:].count_nonzero() == 0
    torch.testing.assert_close(layer(IMAGES, mask=real), expected)


def test_a_class_of_the_users_is_not_passed_by():
    class Doubled(bnkit.BatchNorm2d):
        def forward(self, input, residual=None):
            return 2 * super().forward(input, residual)

    layer = Doubled(4, activation="sigmoid")
    torch.testing.assert_close(layer(IMAGES), (2 * nn.BatchNorm2d(4)(IMAGES)).sigmoid())
    layer.norm.forward = lambda x: x  # as torch's, it takes no residual
    torch.testing.assert_close(layer(IMAGES), IMAGES.sigmoid())


def test_attributes_of_the_batch_norm_are_read_and_written():
    layer = bnkit.BatchNorm2d(4, activation="relu")
    layer.momentum = 0.5
    layer.weight = nn.Parameter(torch.full((4,), 2.0))
    assert (layer.norm.momentum, layer.norm.weight[0].item()) == (0.5, 2.0)
    assert layer.running_mean is layer.norm.running_mean
    assert (layer.num_features, layer.guard) == (4, True)
    layer.mine = 3
    assert not hasattr(layer.norm, "mine")
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = layer.absent


def test_an_activation_may_be_given_and_taken_later():
    layer = bnkit.BatchNorm2d(4)
    layer.activation = "relu"
    assert type(layer) is ActivatedNorm
    torch.testing.assert_close(layer(IMAGES), nn.BatchNorm2d(4)(IMAGES).relu())
    layer.activation = None
    torch.testing.assert_close(layer(IMAGES), nn.BatchNorm2d(4)(IMAGES))
    with pytest.raises(ValueError, match="`activation` is 'swish'"):
        bnkit.BatchNorm2d(4).activation = "swish"


def test_hooks_on_calls_stay_outside():
    layer, seen = nn.BatchNorm2d(4), []
    layer.register_forward_hook(lambda *call: seen.append(call[-1].min().item()))
    enclose(layer, "relu")
    layer(IMAGES)
    disclose(layer, layer.norm)
    layer(IMAGES)
    assert seen[0] == 0.0 > seen[1]
    assert type(layer) is nn.BatchNorm2d


# Checkpoints, pickles


def test_state_dicts_are_torchs_both_ways():
    ours, theirs = Net(), nn.ModuleDict({f"bn{n}": nn.BatchNorm2d(4) for n in (1, 2, 3)})
    theirs["conv"] = nn.Conv2d(4, 4, 3, padding=1)
    randomised(theirs)
    assert ours.load_state_dict(theirs.state_dict()).missing_keys == []
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    assert theirs.load_state_dict(ours.state_dict()).unexpected_keys == []
    assert ours.load_state_dict(theirs.state_dict(), assign=True).missing_keys == []
    assert ours.bn1.norm.weight.data_ptr() == theirs["bn1"].weight.data_ptr()


def test_what_does_not_fit_is_named_by_its_key():
    model, state = Net(), Net().state_dict()
    state["bn1.running_mean"] = torch.zeros(5)
    state["bn1.other"] = state.pop("bn3.bias")
    found = '(?s)Missing.*"bn3.bias".*Unexpected.*"bn1.other".*size mismatch for bn1.running_mean'
    with pytest.raises(RuntimeError, match=found):
        model.load_state_dict(state)
    named = {**dict(Net().named_parameters()), **dict(Net().named_buffers())}
    assert {key_of(model, name) for name in named} == model.state_dict().keys()
    model.load_state_dict(named)


class Half(nn.Module):
    def forward(self, values):
        return values / 2


def with_more():
    """What users give to a layer: a parametrisation, and modules, parameters and buffers."""
    layer = bnkit.BatchNorm2d(4, activation="relu")
    register_parametrization(layer.norm, "weight", Half())
    layer.extra = nn.Linear(2, 2)
    layer.add_module("other", nn.BatchNorm1d(2))
    layer.scale = nn.Parameter(torch.rand(1))
    layer.register_buffer("offset", torch.rand(1))
    return nn.Sequential(layer, nn.Linear(2, 2))


@pytest.mark.parametrize("assign", [False, True])
def test_what_users_give_to_it_is_saved_and_loaded(assign):
    saved, loaded = randomised(with_more()), with_more()
    state = saved.state_dict()
    own = {"0.parametrizations.weight.original", "0.extra.weight", "0.scale", "0.offset"}
    assert state.keys() >= own
    assert len(state) == len([*saved.parameters(), *saved.buffers()])
    loaded.load_state_dict(state, assign=assign)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert torch.equal(loaded[0].norm.weight, saved[0].norm.weight)
    assert loaded[0].extra is loaded[0].norm.extra
    del state["0.parametrizations.weight.original"], state["0.extra.bias"]
    found = r"(?s)Missing.*parametrizations\.weight\.original.*extra\.bias"
    with pytest.raises(RuntimeError, match=found):
        loaded.load_state_dict(state)


def made():
    return nn.Sequential(
        bnkit.BatchNorm1d(2, activation="relu"),
        bnkit.BatchNorm1d(2),
        bnkit.layers.GhostBatchNorm1d(2, virtual_batch_size=2, activation="silu"),
    ).eval()


@pytest.mark.parametrize("text", [OURS, CONVERTED], ids=["ours", "converted to torch's"])
def test_pickles_of_before_load(text):
    model = pickle.loads(zlib.decompress(base64.b64decode(text)))
    x = torch.randn(8, 2)
    assert model.state_dict().keys() == made().state_dict().keys()
    torch.testing.assert_close(model(x), made()(x))
    torch.testing.assert_close(model.train()[1](x), nn.BatchNorm1d(2)(x))
    assert not any(isinstance(m, _BatchNorm) for m in (model[0], model[2]))
    assert all("non_finite" not in name for name, _ in model.named_buffers())
    if text is OURS:
        assert model[0].non_finite_batches == 3
        assert str(model) == str(made().train())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_whole(copied):
    model = randomised(Net()).eval()
    again = copied(model)
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert again.bn1.norm is not model.bn1.norm


# Inside torch


def test_buffers_are_torchs_three():
    for layer in (bnkit.BatchNorm2d(4), bnkit.BatchNorm2d(4, activation="relu")):
        mean, variance, count = layer.buffers()
        assert (mean.shape, variance.shape, count.item()) == ((4,), (4,), 0)
        state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        y = torch.func.functional_call(layer, state, (IMAGES,), strict=True)
        torch.testing.assert_close(y, copy.deepcopy(layer)(IMAGES))


def test_the_count_follows_the_statistics():
    layer = bnkit.BatchNorm2d(4, device="meta")
    assert layer.non_finite_batches.item() == 0
    assert layer.to_empty(device="cpu").non_finite_batches.item() == 0
    layer.reset_running_stats()
    layer(torch.full((2, 4, 1, 1), torch.nan))
    assert copy.deepcopy(layer).half().non_finite_batches.item() == 1


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_layer_made_without_memory_counts_once_it_has_some(activation):
    with torch.device("meta"):
        assigned, emptied = (bnkit.BatchNorm2d(4, activation=activation) for _ in range(2))
        plain = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    plan = bnkit.surgery.plan_acceleration(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), IMAGES)
    accelerated = plan.change(plain)[0]
    accelerated.guard = True
    assigned.load_state_dict(nn.BatchNorm2d(4).state_dict(), assign=True)
    for layer in (emptied, accelerated):
        layer.to_empty(device="cpu").load_state_dict(nn.BatchNorm2d(4).state_dict())
    for layer in (assigned, emptied, accelerated):
        layer(torch.full((2, 4, 1, 1), torch.nan))
        assert layer.non_finite_batches.item() == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["layers", "accelerated"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit is
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # torch's batch_norm gives them
def test_torch_jit_traces_torchs_own_operations(name, training):
    plain = randomised(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.SiLU()))
    model = Net() if name == "layers" else bnkit.accelerate(plain, IMAGES)
    model = randomised(model).train(training)
    traced = torch.jit.trace(copy.deepcopy(model), (IMAGES,), check_trace=False)
    assert "bnkit::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(IMAGES[:3]), copy.deepcopy(model)(IMAGES[:3]))


@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_as_one_graph(training):
    model = randomised(Net()).train(training)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(compiled._orig_mod.state_dict()[name], value)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_fx_traces_every_layer_as_a_leaf(kind, activation):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.bn = kind(4, activation=activation)

        def forward(self, x):
            return self.bn(input=self.conv(x), residual=x) + self.bn(x)

    model = randomised(Model()).eval()
    traced = symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == [
        "conv",
        "bn",
        "bn",
    ]
    assert torch.equal(traced(IMAGES), model(IMAGES))
    assert traced.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_fx_traces_a_layer_that_is_the_root(kind, activation):
    layer = randomised(kind(4, activation=activation)).eval()
    traced = symbolic_trace(layer)
    assert torch.equal(traced(IMAGES), layer(IMAGES))
    assert torch.equal(copy.deepcopy(traced)(IMAGES, IMAGES), layer(IMAGES, IMAGES))
