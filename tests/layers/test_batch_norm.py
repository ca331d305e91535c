import copy
import inspect
import io
import pickle
import pydoc
import re
from typing import Literal, get_type_hints

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnkit.kernels.activations import ACTIVATIONS
from bnkit.layers import (
    AccumulatedBatchNorm2d,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormLSTM,
    BatchNormLSTMCell,
    BatchRenorm2d,
    DomainBatchNorm2d,
    FrozenBatchNorm2d,
    GhostBatchNorm2d,
    MaskedBatchNorm2d,
    SyncBatchNorm2d,
)
from bnkit.layers.batch_norm import BatchNormOptions, GuardedBatchNorm
from cases import constructor, equal, torchs

PAIRS = {BatchNorm1d: nn.BatchNorm1d, BatchNorm2d: nn.BatchNorm2d, BatchNorm3d: nn.BatchNorm3d}
KINDS = pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.__name__)
INPUTS = pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (BatchNorm1d, (6, 3)),
        (BatchNorm1d, (6, 3, 5)),
        (BatchNorm2d, (4, 3, 5, 2)),
        (BatchNorm3d, (2, 3, 2, 4, 2)),
    ],
    ids=["1d", "1d with length", "2d", "3d"],
)
SHAPES = {BatchNorm1d: (6, 3), BatchNorm2d: (4, 3, 5, 2), BatchNorm3d: (2, 3, 2, 4, 2)}
OPTIONS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"eps": 0.1, "momentum": 0.7},
        {"momentum": None},  # the average over all batches so far
        {"momentum": 0.0},
        {"affine": False},
        {"bias": False},
        {"track_running_stats": False},
        {"track_running_stats": False, "momentum": None, "affine": False},
        {"dtype": torch.float64},
    ],
    ids=str,
)


def pair(kind, *, activation=None, **options):
    """Return our layer and torch's, with the same parameters that are not 1 and 0."""
    ours, theirs = kind(3, activation=activation, **options), torchs(PAIRS[kind], 3, **options)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(other.copy_(torch.randn(3)))
    return ours, theirs


def batch(shape, layer, *, dtype=None):
    dtype = dtype or next((p.dtype for p in layer.parameters()), torch.float32)
    return torch.randn(shape).to(dtype) * 3 + 1


def gradients(layer, x):
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    return y, *torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])


def assert_same_step(ours, theirs, x):
    """Check that outputs, gradients and the state after it are equal to the last bit."""
    for mine, other in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        assert equal(mine, other)
    assert_same_state(ours, theirs)


def assert_same_state(ours, theirs):
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    assert mine._metadata == other._metadata
    for key, value in mine.items():
        assert value.dtype == other[key].dtype
        assert equal(value, other[key]), key


@OPTIONS
@INPUTS
def test_a_life_of_training_and_evaluation_is_that_of_torch(kind, shape, options):
    ours, theirs = pair(kind, **options)
    assert_same_state(ours, theirs)
    for training in (True, True, False, True, False):
        ours.train(training)
        theirs.train(training)
        assert_same_step(ours, theirs, batch(shape, theirs))


@pytest.mark.parametrize("track", [False, True])
@INPUTS
def test_switching_tracking_off_and_on_later_is_that_of_torch(kind, shape, track):
    # Some libraries freeze layers so; the buffers stay, and eval mode reads them.
    ours, theirs = pair(kind)
    for layer in (ours, theirs):
        layer(torch.ones(shape) * torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)))
        layer.track_running_stats = track
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        assert_same_step(ours, theirs, batch(shape, theirs))


@INPUTS
def test_removed_running_statistics_make_eval_mode_use_the_batch_as_in_torch(kind, shape):
    ours, theirs = pair(kind)
    for layer in (ours, theirs):
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        assert_same_step(ours, theirs, batch(shape, theirs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@INPUTS
def test_half_precision_inputs_keep_float32_state_as_in_torch(kind, shape, dtype):
    ours, theirs = pair(kind)
    x = batch(shape, theirs, dtype=dtype)
    assert_same_step(ours, theirs, x)
    assert ours(x).dtype == dtype
    assert ours.running_mean.dtype == torch.float32


@INPUTS
def test_a_layer_in_half_precision_is_that_of_torch(kind, shape):
    ours, theirs = pair(kind, dtype=torch.bfloat16)
    assert_same_step(ours, theirs, batch(shape, theirs))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@INPUTS
def test_activation_and_residual_follow_the_batch_norm_of_torch(kind, shape, activation):
    ours, theirs = pair(kind, activation=activation)
    x, residual = batch(shape, theirs), batch(shape, theirs)
    function = ACTIVATIONS[activation].function
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        assert equal(ours(x), function(theirs(x)))
        assert equal(ours(x, residual), function(theirs(x) + residual))
        assert_same_state(ours, theirs)


def test_the_activation_may_be_changed_later():
    layer, x = BatchNorm1d(3), torch.randn(4, 3)
    layer.activation = "relu"
    assert equal(layer(x), torch.relu(nn.BatchNorm1d(3)(x)))


@KINDS
def test_layers_are_those_of_torch_to_others(kind):
    assert isinstance(kind(3), PAIRS[kind])
    assert isinstance(kind(3), nn.modules.batchnorm._BatchNorm)


@KINDS
def test_the_constructor_is_that_of_torch_with_an_activation_and_a_guard(kind):
    ours = inspect.signature(kind).parameters
    theirs = constructor(PAIRS[kind])
    assert [(p.name, p.default, p.kind) for p in theirs.values()] == [
        (p.name, p.default, p.kind) for p in list(ours.values())[:-2]
    ]
    assert list(ours)[-2:] == ["activation", "guard"]


# The options, of every kind

OWN = {
    GhostBatchNorm2d: {"virtual_batch_size": 4},
    BatchRenorm2d: {"r_max": 2.0, "d_max": 1.0},
    MaskedBatchNorm2d: {"default": "all"},
    AccumulatedBatchNorm2d: {"micro_batches": 2},
    DomainBatchNorm2d: {"domains": ("day", "night")},
    FrozenBatchNorm2d: {},
    SyncBatchNorm2d: {"process_group": None, "sync_name": "bn"},
}
OTHER_KINDS = pytest.mark.parametrize(
    ("kind", "own"), OWN.items(), ids=lambda k: getattr(k, "__name__", "")
)


def test_the_shared_options_are_those_of_the_constructor_with_its_types():
    shared = dict(inspect.signature(GuardedBatchNorm.__init__).parameters)
    del shared["self"], shared["num_features"]
    assert {name: p.annotation for name, p in shared.items()} == get_type_hints(BatchNormOptions)


@OTHER_KINDS
def test_every_kind_shows_the_options_of_all_and_its_own_with_types_and_defaults(kind, own):
    shown = inspect.signature(kind).parameters
    shared = dict(inspect.signature(BatchNorm2d).parameters)
    if kind is DomainBatchNorm2d:  # whose domains may have a weight and bias of their own
        shared["affine"] = shared["affine"].replace(annotation=bool | Literal["each"])
    assert [p for p in shown.values() if p.name in shared] == list(shared.values())
    assert shown.keys() - shared.keys() == own.keys()
    assert all(p.annotation is not p.empty for p in shown.values())
    assert {shown[name].kind for name in own} <= {inspect.Parameter.KEYWORD_ONLY}
    assert "track_running_stats: bool = True" in pydoc.plain(pydoc.render_doc(kind.__init__))


@OTHER_KINDS
def test_every_kind_takes_torch_s_arguments_by_position(kind, own):
    by_position = kind(3, 0.1, 0.7, False, True, None, torch.float64, **own)
    by_name = kind(num_features=3, eps=0.1, momentum=0.7, affine=False, dtype=torch.float64, **own)
    assert repr(by_position) == repr(by_name)
    assert by_position.running_mean.dtype == torch.float64
    for name, value in own.items():
        assert getattr(by_position, name) == value


@OTHER_KINDS
def test_every_kind_refuses_options_that_it_does_not_have(kind, own):
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentun'"):
        kind(3, momentun=0.5, **own)
    with pytest.raises(TypeError, match="positional argument"):
        kind(3, 0.1, 0.7, False, True, None, None, True, **own)


def test_lstm_layers_show_the_arguments_of_torch_and_those_of_their_batch_norms():
    theirs = list(inspect.signature(nn.RNNBase.__init__).parameters)[2:]
    shown = inspect.signature(BatchNormLSTM).parameters
    assert list(shown) == [*theirs, "max_steps", "eps", "momentum", "guard"]
    cell = inspect.signature(BatchNormLSTMCell).parameters
    theirs = list(inspect.signature(nn.LSTMCell).parameters)
    assert list(cell) == [*theirs, "max_steps", "eps", "momentum", "guard"]
    defaults = {name: p.default for name, p in shown.items()}
    assert {
        name: p.default for name, p in cell.items() if name in defaults
    }.items() <= defaults.items()


@KINDS
def test_an_unknown_activation_is_refused_at_construction(kind):
    with pytest.raises(ValueError, match=r"`activation` is 'mish': choose one of None, 'relu'"):
        kind(3, activation="mish")


@KINDS
def test_the_number_of_dimensions_is_checked_as_in_torch(kind):
    for dimensions in range(1, 7):
        x = torch.randn([2, 3, 2, 2, 2, 2][:dimensions])
        try:
            expected = PAIRS[kind](3)(x).shape
        except ValueError as refusal:
            with pytest.raises(ValueError, match=re.escape(str(refusal))):
                kind(3)(x)
        else:
            assert kind(3)(x).shape == expected


def test_one_value_per_channel_is_refused_in_training():
    with pytest.raises(ValueError, match=r"`input` of shape \(1, 3\) has 1 value per channel"):
        BatchNorm1d(3)(torch.randn(1, 3))


@KINDS
def test_the_representation_is_that_of_torch_and_the_activation(kind):
    assert repr(kind(3, momentum=None)) == repr(PAIRS[kind](3, momentum=None))
    with_activation = repr(PAIRS[kind](3))[:-1] + ", activation='relu')"
    assert repr(kind(3, activation="relu")) == with_activation


# Checkpoints and copies


@OPTIONS
@INPUTS
def test_checkpoints_load_both_ways(kind, shape, options):
    ours, theirs = kind(3, activation="relu", **options), torchs(PAIRS[kind], 3, **options)
    ours(batch(shape, ours))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_same_state(ours, theirs)
    theirs(batch(shape, theirs))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_state(ours, theirs)


def test_checkpoints_from_before_the_batches_were_counted_load():
    state = nn.BatchNorm2d(3).state_dict()
    del state["num_batches_tracked"], state._metadata
    layer = BatchNorm2d(3)
    layer.load_state_dict(state, strict=True)
    assert layer.num_batches_tracked.item() == 0


def test_a_saved_state_dict_loads_with_weights_only():
    layer, file = BatchNorm2d(3, activation="relu"), io.BytesIO()
    layer(torch.randn(4, 3, 2, 2))
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = BatchNorm2d(3)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert_same_state(loaded, layer)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "copy", "pickle"],
)
@INPUTS
def test_copies_do_the_same_and_keep_the_activation(kind, shape, duplicate):
    layer = kind(3, activation="hardswish", momentum=None)
    layer(batch(shape, layer))
    other = duplicate(layer).eval()
    x = batch(shape, layer)
    assert torch.equal(other(x, x), layer.eval()(x, x))
    assert repr(other) == repr(layer)


def test_a_deep_copy_shares_no_running_statistics():
    layer = BatchNorm1d(3)
    copy.deepcopy(layer)(torch.randn(4, 3))
    assert layer.num_batches_tracked.item() == 0
    assert torch.equal(layer.running_mean, torch.zeros(3))


# What others do with layers


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_layers_compile_as_one_graph(backend):
    torch.compiler.reset()
    ours, theirs = BatchNorm2d(3, activation="relu"), nn.BatchNorm2d(3)
    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        x, residual = torch.randn(2, 4, 3, 5, 5)
        torch.testing.assert_close(compiled(x, residual), torch.relu(theirs(x) + residual))
        assert_same_state(ours, theirs)


def test_layers_export():
    layer = BatchNorm2d(3, activation="relu").eval()
    x = torch.randn(2, 3, 4, 4)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


def test_functional_calls_take_other_parameters():
    layer, x = BatchNorm1d(3, activation="relu").eval(), torch.randn(4, 3)
    doubled = {name: 2 * value for name, value in layer.named_parameters()}
    y = torch.func.functional_call(layer, doubled, (x,), {"residual": x})
    torch.testing.assert_close(y, torch.relu(2 * nn.BatchNorm1d(3).eval()(x) + x))


def test_meta_device_and_moving_are_those_of_torch():
    layer = BatchNorm1d(3, device="meta", activation="relu")
    assert layer(torch.randn(4, 3, device="meta")).shape == (4, 3)
    assert layer.to_empty(device="cpu").running_mean.device.type == "cpu"


@KINDS
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_mini_batch_that_is_not_finite_stays_out_of_the_running_statistics(kind, poison):
    layer, plain = kind(3), PAIRS[kind](3)
    good, bad = torch.randn(2, *SHAPES[kind])
    bad[0, 1] = poison
    for x in (good, bad, good + 1):
        y = layer(x)
        y.sum().backward()  # what the guard writes is no part of the graph
    for x in (good, good + 1):
        plain(x)
    for name, value in plain.state_dict().items():
        assert equal(layer.state_dict()[name], value)
    assert layer.non_finite_batches.item() == 1


@KINDS
def test_without_the_guard_it_enters_as_in_torch(kind):
    layer, plain = kind(3, guard=False), PAIRS[kind](3)
    x = torch.full(SHAPES[kind], float("nan"))
    assert layer(x).isnan().all()
    plain(x)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value, equal_nan=True)
    assert layer.non_finite_batches.item() == 0


def test_statistics_whose_product_overflows_are_finite_all_the_same():
    layer = BatchNorm1d(1, momentum=1.0)
    layer(torch.tensor([[1e18], [3e18]]))  # mean 2e18, variance 2e36: their product is infinite
    assert layer.non_finite_batches.item() == 0
    torch.testing.assert_close(layer.running_mean, torch.tensor([2e18]))


def test_the_guard_leaves_nothing_in_the_state_dict():
    assert BatchNorm1d(3).state_dict().keys() == nn.BatchNorm1d(3).state_dict().keys()


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_activation_checkpointing_counts_a_mini_batch_once(guard, use_reentrant, momentum):
    layer, plain = BatchNorm1d(3, momentum=momentum, guard=guard), BatchNorm1d(3, momentum=momentum)
    x = torch.randn(8, 3, requires_grad=True)
    plain(x)
    checkpoint(layer, x, use_reentrant=use_reentrant).square().sum().backward()
    for name, value in plain.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)


def test_statistics_of_another_kind_are_tracked_by_the_same_rules():
    layer = BatchNorm1d(2)
    layer.track(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(layer.running_mean, torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(layer.running_var, torch.tensor([1.2, 1.3]))
    layer.track(torch.tensor([1.0, float("nan")]), torch.ones(2))
    layer.eval().track(torch.ones(2), torch.ones(2))
    torch.testing.assert_close(layer.running_mean, torch.tensor([0.1, 0.2]))
    assert [layer.num_batches_tracked.item(), layer.non_finite_batches.item()] == [1, 1]


@pytest.mark.parametrize("guard", [True, False])
def test_statistics_of_another_kind_are_tracked_once_when_checkpointed(guard):
    class Own(BatchNorm1d):
        def normalise_by_batch(self, input, _=None):
            self.track(input.mean(0), input.var(0))
            return input * 2

    layer, x = Own(2, guard=guard), torch.randn(5, 2, requires_grad=True)
    checkpoint(layer, x, use_reentrant=True).sum().backward()
    torch.testing.assert_close(layer.running_mean, 0.1 * x.detach().mean(0))
    assert layer.num_batches_tracked == 1
