import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

from bnkit.layers.frozen import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from cases import constructor, equal, torchs

PAIRS = {
    FrozenBatchNorm1d: nn.BatchNorm1d,
    FrozenBatchNorm2d: nn.BatchNorm2d,
    FrozenBatchNorm3d: nn.BatchNorm3d,
}
KINDS = pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.__name__)
INPUTS = pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (FrozenBatchNorm1d, (6, 3)),
        (FrozenBatchNorm1d, (6, 3, 5)),
        (FrozenBatchNorm2d, (4, 3, 5, 2)),
        (FrozenBatchNorm3d, (2, 3, 2, 4, 2)),
    ],
    ids=["1d", "1d with length", "2d", "3d"],
)
OPTIONS = pytest.mark.parametrize(
    "options", [{}, {"eps": 0.1}, {"affine": False}, {"bias": False}], ids=str
)
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def pair(kind, **options):
    """Return a frozen layer and torch's in eval mode, with the same state, which is not 1 and 0."""
    ours, theirs = kind(3, **options), torchs(PAIRS[kind], 3, **options).eval()
    with torch.no_grad():
        for values in (*theirs.parameters(), theirs.running_mean):
            values.copy_(torch.randn(3))
        theirs.running_var.uniform_(0.2, 3.0)
        theirs.num_batches_tracked.fill_(7)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


class ForeignFrozen2d(nn.Module):
    """A frozen batch norm as others write it: four buffers, and no count of mini-batches."""

    def __init__(self, version):
        super().__init__()
        self._version = version
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("bias", torch.tensor([0.5, 0.0, -0.5]))
        self.register_buffer("running_mean", torch.tensor([1.0, -1.0, 2.0]))
        self.register_buffer("running_var", torch.tensor([4.0, 1.0, 0.25]))


@MODES
@OPTIONS
@INPUTS
def test_in_every_mode_it_is_the_layer_of_torch_in_eval_mode(kind, shape, options, training):
    ours, theirs = pair(kind, **options)
    model = nn.Sequential(ours).train(training)
    before = copy.deepcopy(ours.state_dict())
    x = torch.randn(shape, requires_grad=True)
    y, expected = model(x), theirs(x)
    assert equal(y, expected)
    assert equal(*(torch.autograd.grad(v.square().sum(), x)[0] for v in (y, expected)))
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)


@MODES
@INPUTS
def test_activation_and_residual_follow_and_gradients_pass_to_both(kind, shape, training):
    ours, theirs = pair(kind)
    ours.train(training).activation = "silu"
    x, residual = (torch.randn(shape, requires_grad=True) for _ in range(2))
    y, expected = ours(x, residual), nn.functional.silu(theirs(x) + residual)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), (x, residual)),
        torch.autograd.grad(expected.sum(), (x, residual)),
    )


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (1, 3, 1), (4, 3, 0)], ids=str)
def test_empty_inputs_and_one_value_per_channel_need_no_statistics(shape):
    ours, theirs = pair(FrozenBatchNorm1d)
    x = torch.randn(shape)
    assert equal(ours.train()(x), theirs(x))


def test_nan_passes_through_and_stays_nowhere():
    layer, _ = pair(FrozenBatchNorm1d)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(4, 3)
    x[0, 1] = float("nan")
    y = layer.train()(x)
    assert y.isnan().nonzero().tolist() == [[0, 1]]
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert layer.non_finite_batches.item() == 0


# Nothing trains it


@KINDS
def test_it_has_buffers_and_no_parameters(kind):
    layer = kind(3)
    assert list(layer.parameters()) == []
    assert {"weight", "bias", "running_mean", "running_var"} < dict(layer.named_buffers()).keys()


def test_requires_grad_on_the_model_does_not_thaw_it():
    frozen, _ = pair(FrozenBatchNorm2d)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), frozen).requires_grad_(True).train()
    before = copy.deepcopy(frozen.state_dict())
    first = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(torch.randn(4, 2, 5, 5)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, first)  # what lies before it trains
    assert not frozen.weight.requires_grad
    assert frozen.weight.grad is None
    torch.testing.assert_close(frozen.state_dict(), before, rtol=0, atol=0)


def test_it_cannot_be_told_to_track():
    layer, _ = pair(FrozenBatchNorm1d)
    before = copy.deepcopy(layer.state_dict())
    layer.train().track(torch.ones(3), torch.ones(3))
    assert not layer.tracks
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_new_statistics_for_the_model_leave_it_alone():
    frozen, _ = pair(FrozenBatchNorm1d, momentum=0.3)
    model = nn.Sequential(frozen, nn.BatchNorm1d(3))
    before = copy.deepcopy(frozen.state_dict())
    update_bn([torch.randn(8, 3)], model)
    assert model[1].num_batches_tracked.item() == 1
    torch.testing.assert_close(frozen.state_dict(), before, rtol=0, atol=0)
    assert frozen.momentum == 0.3


def test_resetting_the_parameters_starts_anew():
    layer, _ = pair(FrozenBatchNorm1d)
    layer.reset_parameters()
    torch.testing.assert_close(layer.state_dict(), FrozenBatchNorm1d(3).state_dict())


def test_the_mode_of_the_model_is_that_of_the_layer():
    # So that a layer that is converted to a trainable one and back keeps its flag.
    model = nn.Sequential(FrozenBatchNorm1d(3))
    assert [model.train(mode)[0].training for mode in (False, True)] == [False, True]


# Checkpoints and copies


@OPTIONS
@KINDS
def test_checkpoints_load_both_ways(kind, options):
    ours, theirs = pair(kind, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    other = torchs(PAIRS[kind], 3, **options)
    other.load_state_dict(ours.state_dict())
    torch.testing.assert_close(other.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.parametrize("version", [1, 3])  # the versions of two libraries' state dicts
def test_checkpoints_of_frozen_layers_without_a_count_load(version):
    foreign, ours = ForeignFrozen2d(version), FrozenBatchNorm2d(3)
    ours.num_batches_tracked.fill_(7)
    state = nn.Sequential(foreign).state_dict()
    assert nn.Sequential(ours).load_state_dict(state) == ([], [])
    assert ours.num_batches_tracked.item() == 7
    assert torch.equal(ours.running_var, foreign.running_var)
    assert len(state) == 4  # the dictionary of the user is as it was


def test_other_missing_keys_are_an_error_as_in_torch():
    state = FrozenBatchNorm2d(3).state_dict()
    del state["running_var"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"running_var"'):
        FrozenBatchNorm2d(3).load_state_dict(state)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
@MODES
def test_copies_do_the_same_and_stay_frozen(duplicate, training):
    layer, _ = pair(FrozenBatchNorm2d, eps=0.1)
    layer.train(training).activation = "relu"
    other = duplicate(layer)
    x = torch.randn(4, 3, 5, 2)
    assert torch.equal(other(x), layer(x))
    assert repr(other) == repr(layer)
    assert list(other.parameters()) == []
    other.running_mean += 1
    other.weight += 1
    for mine, its in zip(layer.buffers(), other.buffers(), strict=True):
        assert mine.data_ptr() != its.data_ptr()


@KINDS
def test_the_constructor_is_that_of_torch_with_an_activation_and_a_guard(kind):
    ours, theirs = inspect.signature(kind).parameters, constructor(PAIRS[kind])
    assert [name for name in ours if name in theirs] == list(theirs)
    assert ours.keys() - theirs.keys() == {"activation", "guard"}
    assert [ours[name].default for name in theirs] == [p.default for p in theirs.values()]
    assert isinstance(kind(3), PAIRS[kind])
    assert kind(3, eps=0.01).eps == 0.01


# Devices, dtypes, compilers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_are_those_of_torch(dtype):
    ours, theirs = pair(FrozenBatchNorm2d)
    x = torch.randn(4, 3, 5, 2).to(dtype)
    assert torch.equal(ours.train()(x), theirs(x))
    assert ours.half().weight.dtype == torch.float16


def test_autocast_trains_what_lies_before_it():
    frozen, _ = pair(FrozenBatchNorm2d)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), frozen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(torch.randn(4, 2, 6, 6))
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert model[0].weight.grad.isfinite().all()


def test_layers_compile_as_one_graph():
    torch.compiler.reset()
    ours, theirs = pair(FrozenBatchNorm2d)
    ours.activation = "relu"
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    for training in (True, False):
        ours.train(training)
        x, residual = torch.randn(2, 4, 3, 5, 5)
        torch.testing.assert_close(compiled(x, residual), torch.relu(theirs(x) + residual))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_changes_nothing(use_reentrant):
    ours, theirs = pair(FrozenBatchNorm1d)
    x = torch.randn(6, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(theirs(x).square().sum(), x)
    checkpoint(ours.train(), x, use_reentrant=use_reentrant).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_a_layer_made_without_memory_can_be_filled_later():
    layer = FrozenBatchNorm1d(3, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    torch.testing.assert_close(layer(torch.ones(2, 3)), nn.BatchNorm1d(3).eval()(torch.ones(2, 3)))


# Refusals


def test_a_layer_without_running_statistics_is_refused():
    with pytest.raises(ValueError, match=r"`track_running_stats` is False, .*use BatchNorm1d"):
        FrozenBatchNorm1d(3, track_running_stats=False)


def test_running_statistics_that_are_gone_are_an_error():
    layer = FrozenBatchNorm1d(3)
    layer.running_mean = layer.running_var = None
    with pytest.raises(RuntimeError, match=r"have been taken away, .*give them back"):
        layer(torch.randn(4, 3))


@KINDS
def test_the_number_of_dimensions_is_checked_as_in_torch(kind):
    with pytest.raises(ValueError, match="got 6D input"):
        kind(3)(torch.randn(2, 3, 2, 2, 2, 2))
