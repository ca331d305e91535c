import copy
import inspect
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnkit.layers.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, Ramp
from bnkit.observation import normalising_by_batch_statistics
from cases import constructor, equal, torchs

PAIRS = {
    BatchRenorm1d: nn.BatchNorm1d,
    BatchRenorm2d: nn.BatchNorm2d,
    BatchRenorm3d: nn.BatchNorm3d,
}
KINDS = pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.__name__)
SHAPES = {BatchRenorm1d: (6, 3), BatchRenorm2d: (4, 3, 5, 2), BatchRenorm3d: (2, 3, 2, 4, 2)}
OPTIONS = pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"bias": False}, {"eps": 0.1, "momentum": 0.7}], ids=str
)
UNLIMITED = {"r_max": 1e6, "d_max": 1e6}


def layer_of(kind, **options):
    """Return a layer with parameters and running statistics that are not 1 and 0."""
    layer = kind(3, **options)
    with torch.no_grad():
        for values in (*layer.parameters(), layer.running_mean):
            values.copy_(torch.randn(3))
        layer.running_var.uniform_(0.2, 3.0)
    return layer


def from_the_paper(layer, x, r_max, d_max):
    """Algorithm 1 of Ioffe (2017), with σ = √(running_var + eps); returns y, r and d."""
    axes = [0, *range(2, x.dim())]

    def beside(values):
        return values.reshape(1, -1, *[1] * (x.dim() - 2))

    mean = x.mean(axes)
    sigma = ((x - beside(mean)).square().mean(axes) + layer.eps).sqrt()
    running_sigma = (layer.running_var + layer.eps).sqrt()
    r = (sigma / running_sigma).clamp(1 / r_max, r_max).detach()
    d = ((mean - layer.running_mean) / running_sigma).clamp(-d_max, d_max).detach()
    y = (x - beside(mean)) / beside(sigma) * beside(r) + beside(d)
    y = y if layer.weight is None else y * beside(layer.weight)
    return y if layer.bias is None else y + beside(layer.bias), r, d


@pytest.mark.parametrize("limits", [(1.0, 0.0), (1.3, 0.2), (3.0, 5.0), (1e6, 1e6)], ids=str)
@OPTIONS
@KINDS
def test_outputs_and_gradients_are_those_of_the_formula_in_the_paper(kind, options, limits):
    r_max, d_max = limits
    layer = layer_of(kind, dtype=torch.float64, r_max=r_max, d_max=d_max, **options)
    x = (torch.randn(SHAPES[kind], dtype=torch.float64) * 2 + 1).requires_grad_()
    dy = torch.randn_like(x)
    expected, _, _ = from_the_paper(layer, x, r_max, d_max)
    expected_statistics = running_statistics_of_torch(layer, x)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    leaves = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close((layer.running_mean, layer.running_var), expected_statistics)
    assert layer.num_batches_tracked.item() == 1


# torch's forward mode compiles its own formulas by what it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_no_derivative_passes_through_r_and_d_in_forward_mode_either():
    layer = layer_of(BatchRenorm1d, dtype=torch.float64, **UNLIMITED)
    layer.track_running_stats = False  # torch.func changes nothing in place
    x, tangent = torch.randn(2, 6, 3, dtype=torch.float64)
    expected = torch.func.jvp(lambda x: from_the_paper(layer, x, 1e6, 1e6)[0], (x,), (tangent,))
    torch.testing.assert_close(
        torch.func.jvp(layer.requires_grad_(False), (x,), (tangent,)), expected
    )


def running_statistics_of_torch(layer, x):
    mean, variance = layer.running_mean.clone(), layer.running_var.clone()
    F.batch_norm(x, mean, variance, training=True, momentum=layer.momentum)
    return mean, variance


def test_the_limits_of_the_test_before_cut_some_channels_and_not_others():
    # Else that test would not show where the clipping is.
    torch.manual_seed(0)
    layer = layer_of(BatchRenorm1d, dtype=torch.float64)
    x = torch.randn(6, 3, dtype=torch.float64) * 2 + 1
    _, r, d = from_the_paper(layer, x, 1e6, 1e6)
    _, cut_r, cut_d = from_the_paper(layer, x, 1.3, 0.2)
    assert 0 < (r != cut_r).sum() + (d != cut_d).sum() < 6


@OPTIONS
@KINDS
def test_with_r_max_1_and_d_max_0_a_life_of_training_is_that_of_torch(kind, options):
    ours = layer_of(kind, r_max=1.0, d_max=0.0, **options)
    theirs = torchs(PAIRS[kind], 3, **options)
    theirs.load_state_dict(ours.state_dict())
    for training in (True, True, False, True):
        ours.train(training)
        theirs.train(training)
        x = torch.randn(SHAPES[kind]) * 3 + 1
        assert_same_step(ours, theirs, x)


def assert_same_step(ours, theirs, x):
    found = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        found.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])])
    torch.testing.assert_close(*found)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@KINDS
def test_within_wide_limits_training_computes_what_eval_mode_does(kind):
    layer = layer_of(kind, dtype=torch.float64, momentum=0.0, **UNLIMITED)
    x = torch.randn(SHAPES[kind], dtype=torch.float64) + 3
    torch.testing.assert_close(layer(x), layer.eval()(x))


def test_the_running_statistics_of_before_the_mini_batch_correct_it():
    layer = BatchRenorm1d(1, momentum=1.0, **UNLIMITED)
    x = torch.tensor([[2.0], [6.0]])
    torch.testing.assert_close(layer(x), x, atol=1e-4, rtol=0)  # by mean 0 and variance 1
    torch.testing.assert_close(layer.running_mean, torch.tensor([4.0]))


@KINDS
def test_eval_mode_is_that_of_torch(kind):
    ours, theirs = layer_of(kind), PAIRS[kind](3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(SHAPES[kind])
    assert equal(ours.eval()(x), theirs.eval()(x))


@KINDS
def test_activation_and_residual_follow_as_in_the_other_layers(kind):
    layer = layer_of(kind, activation="silu", **UNLIMITED)
    x, residual = torch.randn(2, *SHAPES[kind])
    expected, _, _ = from_the_paper(layer, x, 1e6, 1e6)
    torch.testing.assert_close(copy.deepcopy(layer)(x), F.silu(expected))
    torch.testing.assert_close(layer(x, residual), F.silu(expected + residual))


def test_a_mean_far_from_zero_costs_no_digits_beyond_those_of_the_input():
    layer = layer_of(BatchRenorm1d, r_max=3.0, d_max=5.0)
    with torch.no_grad():
        layer.running_mean += 1e4
    x = torch.randn(64, 3) + 1e4
    wide = copy.deepcopy(layer).double()
    expected, _, _ = from_the_paper(wide, x.double(), 3.0, 5.0)
    torch.testing.assert_close(layer(x), expected.float(), atol=1e-2, rtol=0)  # ulp(1e4) is 1e-3


# Limits and their schedule


@pytest.mark.parametrize(
    ("step", "r_max", "d_max"),
    [
        (0, 1.0, 0.0),
        (5_000, 1.0, 0.0),
        (15_000, 1 + 2 * 10 / 35, 2.5),
        (25_000, 1 + 2 * 20 / 35, 5.0),
        (40_000, 3.0, 5.0),
        (1_000_000, 3.0, 5.0),
    ],
)
def test_the_default_limits_are_those_of_the_paper(step, r_max, d_max):
    layer = BatchRenorm1d(3)
    layer.num_batches_tracked.fill_(step)
    assert layer.r_max(layer.num_batches_tracked).item() == pytest.approx(r_max)
    assert layer.d_max(layer.num_batches_tracked).item() == pytest.approx(d_max)


@pytest.mark.parametrize("step", [0, 5_000, 15_000, 30_000, 50_000])
def test_the_step_is_the_number_of_mini_batches_tracked(step):
    layer = layer_of(BatchRenorm1d, dtype=torch.float64)
    layer.running_mean += 100  # so that both limits bind
    layer.running_var *= 100
    layer.num_batches_tracked.fill_(step)
    limits = [limit(step).item() for limit in (layer.r_max, layer.d_max)]
    x = torch.randn(6, 3, dtype=torch.float64)
    expected, r, d = from_the_paper(layer, x, *limits)
    torch.testing.assert_close(r, torch.full_like(r, 1 / limits[0]))
    torch.testing.assert_close(d, torch.full_like(d, -limits[1]))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    "limits",
    [
        {"r_max": lambda step: 1 + step / 10, "d_max": lambda step: step / 10},
        {"r_max": lambda step: 1.0 if step < 1 else 1.1, "d_max": lambda step: int(step) / 10},
        {"r_max": Ramp(1.0, 2.0, 0, 10), "d_max": Ramp(0.0, 1.0, 0, 10)},
        {"r_max": 1.1, "d_max": Ramp(0.0, 1.0, 0, 10)},
    ],
    ids=["tensors", "numbers", "ramps", "a number and a ramp"],
)
def test_limits_may_be_numbers_or_callables_from_the_step(limits):
    layer = layer_of(BatchRenorm1d, dtype=torch.float64, **limits)
    layer.running_mean += 100
    layer(torch.randn(6, 3, dtype=torch.float64))
    x = torch.randn(6, 3, dtype=torch.float64)
    expected, _, d = from_the_paper(layer, x, 1.1, 0.1)
    torch.testing.assert_close(d, torch.full_like(d, -0.1))
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)  # ramps are float32


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped():
    limits = {"r_max": Ramp(1.0, 3.0, 1, 6), "d_max": Ramp(0.0, 5.0, 1, 4)}
    batches = [torch.randn(6, 3) * (1 + i) + i for i in range(8)]
    whole, first, second = (BatchRenorm1d(3, **limits) for _ in range(3))
    for x in batches[:4]:
        first(x)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    expected = [whole(x) for x in batches]
    for x, y in zip(batches[4:], expected[4:], strict=True):
        assert torch.equal(second(x), y)
    assert not torch.equal(BatchRenorm1d(3, **limits)(batches[4]), expected[4])


def test_limits_may_be_changed_later():
    layer, plain = BatchRenorm1d(3, **UNLIMITED), nn.BatchNorm1d(3)
    layer.r_max, layer.d_max = 1.0, 0.0
    x = torch.randn(6, 3) + 9
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"r_max": 0.5}, r"`r_max` is 0.5: pass a number of at least 1, or a callable from the"),
        ({"d_max": -1.0}, r"`d_max` is -1.0: pass a number of at least 0, or a callable from"),
        ({"r_max": float("nan")}, r"`r_max` is nan: pass a number"),
    ],
    ids=str,
)
def test_limits_that_limit_nothing_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        BatchRenorm1d(3, **limits)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "x", None, True, 10**30])
@pytest.mark.parametrize("name", ["first", "last", "start", "end"])
def test_a_ramp_of_what_is_not_a_finite_number_is_refused(name, wrong):
    with pytest.raises(ValueError, match=rf"`{name}` of a ramp is {wrong!r}: pass a finite number"):
        Ramp(**{"first": 1.0, "last": 3.0, "start": 1, "end": 6, name: wrong})


def test_a_ramp_without_length_is_refused():
    with pytest.raises(ValueError, match=r"`end` is 5 and `start` 5: .*give the limit as a number"):
        Ramp(1.0, 3.0, 5, 5)


# Running statistics that are not there, and refusals


def test_a_layer_without_running_statistics_is_refused():
    with pytest.raises(ValueError, match=r"`track_running_stats` is False, .*use BatchNorm1d"):
        BatchRenorm1d(3, track_running_stats=False)


def test_borrowed_running_statistics_make_it_a_batch_norm():
    layer, x = BatchRenorm1d(3, **UNLIMITED), torch.randn(6, 3) + 9
    with normalising_by_batch_statistics(layer):
        assert equal(layer(x), nn.BatchNorm1d(3)(x))
    assert layer.num_batches_tracked.item() == 0


def test_tracking_switched_off_later_corrects_by_what_is_there():
    layer = layer_of(BatchRenorm1d, dtype=torch.float64, **UNLIMITED)
    layer.track_running_stats = False
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), from_the_paper(layer, x, 1e6, 1e6)[0])
    torch.testing.assert_close(layer.state_dict(), before)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0, 3), r"`input` of shape \(0, 3\) is empty.*\.eval\(\)"),
        ((4, 3, 0), r"`input` of shape \(4, 3, 0\) is empty"),
        ((1, 3), r"`input` of shape \(1, 3\) has 1 value per channel"),
        ((1, 3, 1), r"`input` of shape \(1, 3, 1\) has 1 value per channel"),
    ],
    ids=str,
)
def test_inputs_without_a_variance_are_refused_in_training_only(shape, message):
    layer = layer_of(BatchRenorm1d)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(shape))
    torch.testing.assert_close(layer.state_dict(), before)
    assert layer.eval()(torch.randn(shape)).shape == shape


def test_a_residual_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`residual` has shape \(6, 1\) and `input` \(6, 3\)"):
        BatchRenorm1d(3)(torch.randn(6, 3), torch.zeros(6, 1))


@KINDS
def test_the_number_of_dimensions_is_checked_as_in_torch(kind):
    with pytest.raises(ValueError, match="got 6D input"):
        kind(3)(torch.randn(2, 3, 2, 2, 2, 2))


# As the other layers


@KINDS
def test_the_constructor_is_that_of_torch_with_more_keywords(kind):
    ours, theirs = inspect.signature(kind).parameters, constructor(PAIRS[kind])
    assert [name for name in ours if name in theirs] == list(theirs)
    assert ours.keys() - theirs.keys() == {"r_max", "d_max", "activation", "guard"}
    assert [ours[name].default for name in theirs] == [p.default for p in theirs.values()]
    assert isinstance(kind(3), PAIRS[kind])
    assert repr(kind(3, r_max=3.0, d_max=5.0))[:-1].endswith(", r_max=3.0, d_max=5.0")


@OPTIONS
@KINDS
def test_checkpoints_load_both_ways(kind, options):
    ours, theirs, other = kind(3, **options), torchs(PAIRS[kind], 3, **options), kind(3, **options)
    ours(torch.randn(SHAPES[kind]))
    theirs.load_state_dict(ours.state_dict())
    other.load_state_dict(theirs.state_dict())
    assert list(other.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(other.state_dict(), ours.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
def test_copies_do_the_same(duplicate):
    layer = layer_of(BatchRenorm2d, activation="relu")
    x = torch.randn(SHAPES[BatchRenorm2d])
    layer(x)
    other = duplicate(layer)
    assert repr(other) == repr(layer)
    assert torch.equal(other(x), layer(x))
    torch.testing.assert_close(other.state_dict(), layer.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_half_precision_inputs_keep_float32_state(dtype, affine):
    layer = layer_of(BatchRenorm2d, r_max=3.0, d_max=5.0, affine=affine)
    x = torch.randn(SHAPES[BatchRenorm2d]).to(dtype)
    expected, _, _ = from_the_paper(layer, x.float(), 3.0, 5.0)
    y = layer(x)
    assert (y.dtype, layer.running_mean.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_in_half_precision_works(affine):
    layer = BatchRenorm1d(3, dtype=torch.bfloat16, affine=affine, **UNLIMITED)
    x = torch.randn(10, 3, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    assert (x.grad.dtype, layer.running_var.dtype) == (torch.bfloat16, torch.bfloat16)


def test_autocast_trains():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), BatchRenorm2d(3, **UNLIMITED))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(torch.randn(4, 2, 6, 6))
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert model[0].weight.grad.isfinite().all()
    assert model[1].running_mean.dtype == torch.float32


@pytest.mark.parametrize(
    "limits", [{}, UNLIMITED, {"r_max": Ramp(1.0, 3.0, 0, 2), "d_max": 5.0}], ids=str
)
def test_layers_compile_as_one_graph(limits):
    torch.compiler.reset()
    layer = layer_of(BatchRenorm2d, activation="relu", **limits)
    other = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for training in (True, True, False):
        layer.train(training)
        other.train(training)
        x, residual = torch.randn(2, *SHAPES[BatchRenorm2d])
        torch.testing.assert_close(compiled(x, residual), other(x, residual))
    torch.testing.assert_close(layer.state_dict(), other.state_dict())
    assert layer.norm._last is None  # what a graph made may be overwritten when it runs again


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_mini_batch_that_is_not_finite_stays_out_of_the_running_statistics(poison):
    layer = layer_of(BatchRenorm1d, **UNLIMITED)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(6, 3)
    x[0, 1] = poison
    y = layer(x)
    assert y[:, 1].isnan().any()
    assert y[:, [0, 2]].isfinite().all()
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert layer.non_finite_batches.item() == 1


def test_without_the_guard_it_enters():
    layer = BatchRenorm1d(3, guard=False)
    layer(torch.full((6, 3), float("nan")))
    assert layer.running_mean.isnan().all()
    assert layer.num_batches_tracked.item() == 1


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("momentum", [0.5, 1.0, None])
def test_activation_checkpointing_repeats_the_correction(momentum, use_reentrant, guard):
    # The running statistics by which the first forward was corrected have moved by then.
    layer = layer_of(BatchRenorm1d, momentum=momentum, guard=guard, **UNLIMITED)
    plain = copy.deepcopy(layer)
    for _ in range(2):
        x = torch.randn(6, 3, requires_grad=True)
        (expected,) = torch.autograd.grad(plain(x).pow(3).sum(), x)
        checkpoint(layer, x, use_reentrant=use_reentrant).pow(3).sum().backward()
        torch.testing.assert_close(x.grad, expected)
    torch.testing.assert_close(layer.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_activation_checkpointing_of_an_earlier_forward_is_refused():
    layer = layer_of(BatchRenorm1d, **UNLIMITED)
    first = checkpoint(layer, torch.randn(6, 3, requires_grad=True), use_reentrant=False)
    layer(torch.randn(6, 3))
    with pytest.raises(RuntimeError, match=r"not its last one.*call backward after each forward"):
        first.sum().backward()


def test_gradients_of_gradients_are_right():
    layer = layer_of(BatchRenorm1d, dtype=torch.float64, r_max=1.1, d_max=0.1, activation="tanh")
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        layer.running_mean += 100  # so that the limits bind: r and d are constants for this x
        layer.running_var *= 100
    layer.momentum = 0.0
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))
