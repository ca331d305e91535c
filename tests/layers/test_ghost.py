import copy
import inspect
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnkit.layers.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from bnkit.observation import normalising_by_batch_statistics
from cases import constructor, equal, torchs

PAIRS = {
    GhostBatchNorm1d: nn.BatchNorm1d,
    GhostBatchNorm2d: nn.BatchNorm2d,
    GhostBatchNorm3d: nn.BatchNorm3d,
}
KINDS = pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.__name__)
ROWS_IN_FOURS = {  # number of rows -> rows of its virtual batches
    12: [4, 4, 4],
    14: [4, 4, 4, 2],
    5: [4, 1],
    4: [4],
    3: [3],
}
SHAPES = {GhostBatchNorm1d: (3, 5), GhostBatchNorm2d: (3, 5, 2), GhostBatchNorm3d: (3, 2, 4, 2)}


def layer_of(kind, **options):
    """Return a layer with virtual batches of 4 rows, and parameters that are not 1 and 0."""
    layer = kind(3, virtual_batch_size=4, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(3))
    return layer


def by_hand(layer, x, rows):
    """Return what a loop over the virtual batches gives, and the average of their statistics."""
    outputs, total, mean, variance = [], len(x) * x[0, 0].numel(), 0.0, 0.0
    for part in x.split(rows):
        seen = torch.zeros(3, dtype=x.dtype), torch.zeros(3, dtype=x.dtype)
        # With momentum 1 torch stores the part's own mean and unbiased variance.
        outputs.append(F.batch_norm(part, *seen, layer.weight, layer.bias, True, 1.0, layer.eps))
        values = part.numel() // 3
        mean = mean + seen[0] * values / total
        variance = variance + seen[1] * (values - 1) / (total - len(rows))
    return torch.cat(outputs), mean, variance


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}], ids=str)
@pytest.mark.parametrize("number", ROWS_IN_FOURS)
@KINDS
def test_outputs_gradients_and_statistics_are_those_of_a_loop_over_the_virtual_batches(
    kind, number, options
):
    layer = layer_of(kind, dtype=torch.float64, **options)
    x = (torch.randn(number, *SHAPES[kind], dtype=torch.float64) * 3 + 1).requires_grad_()
    dy = torch.randn_like(x)
    expected, mean, variance = by_hand(layer, x, ROWS_IN_FOURS[number])
    y = layer(x)
    torch.testing.assert_close(y, expected)
    leaves = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(layer.running_mean, 0.1 * mean)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * variance)
    assert layer.num_batches_tracked.item() == 1


@pytest.mark.parametrize(
    ("number", "rows"), [(9, [4, 5]), (5, [5]), (10, [4, 4, 2]), (3, [3])], ids=str
)
def test_a_single_row_left_over_joins_the_last_virtual_batch_where_it_has_one_value(number, rows):
    layer = layer_of(GhostBatchNorm1d, dtype=torch.float64)
    x = torch.randn(number, 3, dtype=torch.float64)
    expected, mean, variance = by_hand(layer, x, rows)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.running_mean, 0.1 * mean)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * variance)


def test_a_virtual_batch_of_one_row_is_normalised_over_its_positions():
    layer = GhostBatchNorm2d(3, virtual_batch_size=1)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(layer(x), nn.InstanceNorm2d(3)(x))


def test_a_mini_batch_of_one_virtual_batch_is_that_of_torch_to_the_last_bit():
    ours, theirs = GhostBatchNorm2d(3, virtual_batch_size=8), nn.BatchNorm2d(3)
    for number in (8, 5, 1):
        x = torch.randn(number, 3, 4, 4) + 2
        assert equal(ours(x), theirs(x))
    for key, value in theirs.state_dict().items():
        assert equal(ours.state_dict()[key], value)


def test_the_running_mean_is_that_of_torch_whatever_the_virtual_batches():
    ours, theirs = layer_of(GhostBatchNorm1d), nn.BatchNorm1d(3)
    for number in (14, 9, 16):  # 9 leaves one row, which joins
        x = torch.randn(number, 3) * 2 + 5
        ours(x)
        theirs(x)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    assert ours.num_batches_tracked == theirs.num_batches_tracked


def test_the_running_variance_has_no_bias_however_small_the_virtual_batches():
    # The biased variance of two values is half of the population's on average.
    layer = GhostBatchNorm1d(1, virtual_batch_size=2, momentum=None)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        layer(3 * torch.randn(1000, 1, generator=generator))
    assert layer.running_var.item() == pytest.approx(9, rel=0.05)


def test_without_momentum_each_mini_batch_counts_the_same():
    layer, means = GhostBatchNorm1d(3, virtual_batch_size=4, momentum=None), []
    for number in (8, 14, 20):
        x = torch.randn(number, 3)
        layer(x)
        means.append(x.mean(0))
    torch.testing.assert_close(layer.running_mean, torch.stack(means).mean(0))


@pytest.mark.parametrize("number", [1, 5, 12])
@KINDS
def test_eval_mode_knows_no_virtual_batches(kind, number):
    ours, theirs = kind(3, virtual_batch_size=4), PAIRS[kind](3)
    ours(torch.randn(9, *SHAPES[kind]))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(number, *SHAPES[kind])
    assert equal(ours.eval()(x), theirs.eval()(x))


def test_without_running_statistics_training_takes_virtual_batches_and_eval_mode_the_whole():
    layer = layer_of(GhostBatchNorm2d, track_running_stats=False)
    x = torch.randn(10, 3, 4, 4)
    torch.testing.assert_close(layer(x), by_hand(layer, x, [4, 4, 2])[0])
    torch.testing.assert_close(layer.eval()(x), by_hand(layer, x, [10])[0])
    assert layer.running_mean is None


def test_borrowed_running_statistics_make_eval_mode_use_the_whole_mini_batch():
    layer, x = layer_of(GhostBatchNorm2d), torch.randn(10, 3, 4, 4)
    with normalising_by_batch_statistics(layer):
        torch.testing.assert_close(layer(x), by_hand(layer, x, [10])[0])
    assert layer.num_batches_tracked.item() == 0


@pytest.mark.parametrize("number", [8, 11])
@KINDS
def test_activation_and_residual_follow_as_in_the_other_layers(kind, number):
    layer = layer_of(kind, activation="silu")
    x, residual = torch.randn(2, number, *SHAPES[kind])
    expected = by_hand(layer, x, [4] * (number // 4) + [number % 4] * (number % 4 > 0))[0]
    torch.testing.assert_close(layer(x), F.silu(expected))
    torch.testing.assert_close(layer(x, residual), F.silu(expected + residual))


@pytest.mark.parametrize("number", [8, 10])
@pytest.mark.parametrize(
    ("kind", "memory_format"),
    [
        (GhostBatchNorm2d, torch.channels_last),
        (GhostBatchNorm2d, torch.contiguous_format),
        (GhostBatchNorm3d, torch.channels_last_3d),
    ],
)
def test_the_memory_format_is_kept_and_changes_no_values(kind, memory_format, number):
    layer = layer_of(kind)
    x = torch.randn(number, *SHAPES[kind])
    residual = torch.randn_like(x)  # in the other format
    y = layer(x.contiguous(memory_format=memory_format), residual)
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, layer(x, residual))


def test_a_view_with_gaps_is_normalised_like_its_copy():
    layer, x = layer_of(GhostBatchNorm1d), torch.randn(10, 3, 12)[..., ::2]
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


# Refusals


@pytest.mark.parametrize("size", [0, -1, 2.0, None])
def test_a_size_that_is_no_whole_number_of_at_least_1_is_refused(size):
    with pytest.raises(ValueError, match=rf"`virtual_batch_size` is {size}: .* of at least 1"):
        GhostBatchNorm1d(3, virtual_batch_size=size)


@pytest.mark.parametrize(
    ("size", "shape", "message"),
    [
        (4, (0, 3), r"`input` of shape \(0, 3\) is empty.*\.eval\(\)"),
        (4, (4, 3, 0), r"`input` of shape \(4, 3, 0\) is empty"),
        (4, (1, 3), r"`input` of shape \(1, 3\) has 1 value per channel"),
        (1, (1, 3), r"`input` of shape \(1, 3\) has 1 value per channel"),
        (1, (6, 3, 1), r"`virtual_batch_size` is 1.*\(6, 3, 1\) has 1 value per.*at least 2"),
    ],
    ids=str,
)
def test_inputs_without_a_variance_are_refused_in_training_only(size, shape, message):
    layer = GhostBatchNorm1d(3, virtual_batch_size=size)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(shape))
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
    assert layer.eval()(torch.randn(shape)).shape == shape


@pytest.mark.parametrize(
    ("residual", "message"),
    [
        (torch.zeros(10, 3, 1), r"`residual` has shape \(10, 3, 1\) and `input` \(10, 3, 5\)"),
        (torch.zeros(8, 3, 5), r"`residual` has shape \(8, 3, 5\) and `input` \(10, 3, 5\)"),
        (torch.zeros(10, 3, 5).half(), r"`residual` is torch.float16"),
    ],
    ids=["length", "rows", "dtype"],
)
def test_a_residual_that_does_not_fit_is_refused_in_the_shapes_of_the_user(residual, message):
    layer = GhostBatchNorm1d(3, virtual_batch_size=4)
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(10, 3, 5), residual)
    assert layer.num_batches_tracked.item() == 0


@KINDS
def test_the_number_of_dimensions_is_checked_as_in_torch(kind):
    with pytest.raises(ValueError, match="got 6D input"):
        kind(3)(torch.randn(2, 3, 2, 2, 2, 2))


# As the other layers


@KINDS
def test_the_constructor_is_that_of_torch_with_more_keywords(kind):
    ours, theirs = inspect.signature(kind).parameters, constructor(PAIRS[kind])
    assert [name for name in ours if name in theirs] == list(theirs)
    assert ours.keys() - theirs.keys() == {"virtual_batch_size", "activation", "guard"}
    assert [ours[name].default for name in theirs] == [p.default for p in theirs.values()]
    assert isinstance(kind(3), PAIRS[kind])
    assert repr(kind(3))[:-1].endswith(", virtual_batch_size=32")


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}], ids=str)
@KINDS
def test_checkpoints_load_both_ways(kind, options):
    ours, theirs = kind(3, virtual_batch_size=4, **options), torchs(PAIRS[kind], 3, **options)
    ours(torch.randn(10, *SHAPES[kind]))
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    theirs.load_state_dict(torch.load(file, weights_only=True))
    other = kind(3, **options)
    other.load_state_dict(theirs.state_dict())
    assert list(other.state_dict()) == list(theirs.state_dict())
    x = torch.randn(4, *SHAPES[kind])
    assert torch.equal(other.eval()(x), ours.eval()(x))


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
def test_copies_do_the_same(duplicate):
    layer = layer_of(GhostBatchNorm2d, activation="relu")
    x = torch.randn(10, 3, 4, 4)
    layer(x)
    other = duplicate(layer)
    assert repr(other) == repr(layer)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(other.running_var, layer.running_var)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_keep_float32_state(dtype):
    layer = layer_of(GhostBatchNorm2d)
    x = torch.randn(10, 3, 4, 4).to(dtype)
    y = layer(x)
    assert (y.dtype, layer.running_mean.dtype) == (dtype, torch.float32)
    expected = by_hand(layer, x.float(), [4, 4, 2])[0]
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)


def test_a_layer_in_half_precision_works():
    layer = layer_of(GhostBatchNorm1d, dtype=torch.bfloat16)
    x = torch.randn(10, 3, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    assert (x.grad.dtype, layer.running_var.dtype) == (torch.bfloat16, torch.bfloat16)


def test_autocast_trains():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), GhostBatchNorm2d(3, virtual_batch_size=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(torch.randn(10, 2, 6, 6))
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert model[0].weight.grad.isfinite().all()
    assert model[1].running_mean.dtype == torch.float32


@pytest.mark.parametrize("number", [8, 10], ids=["even", "ragged"])
def test_layers_compile_as_one_graph(number):
    torch.compiler.reset()
    layer = layer_of(GhostBatchNorm2d, activation="relu")
    other = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for training in (True, False):
        layer.train(training)
        other.train(training)
        x, residual = torch.randn(2, number, 3, 4, 4)
        torch.testing.assert_close(compiled(x, residual), other(x, residual))
    torch.testing.assert_close(layer.state_dict(), other.state_dict())


def test_layers_of_several_sizes_compile_as_one_graph():
    """The compiler takes what it has seen change as a variable: the second time, a size of ours."""
    torch.compiler.reset()
    for virtual, number in [(4, 8), (6, 8), (5, 11), (16, 8)]:
        layer = GhostBatchNorm1d(3, virtual_batch_size=virtual)
        other = copy.deepcopy(layer)
        x = torch.randn(number, 3)
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), other(x))
        torch.testing.assert_close(layer.state_dict(), other.state_dict())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 9], ids=["full virtual batch", "rows left over"])
def test_a_mini_batch_that_is_not_finite_stays_out_of_the_running_statistics(row, poison):
    layer = layer_of(GhostBatchNorm1d)
    good, bad = torch.randn(2, 10, 3)
    layer(good)
    before = copy.deepcopy(layer.state_dict())
    bad[row, 1] = poison
    y = layer(bad)
    assert y[row, 1].isnan()
    assert y[4:8].isfinite().all()  # the virtual batches beside it are as they were
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
    assert layer.non_finite_batches.item() == 1


def test_without_the_guard_it_enters():
    layer = layer_of(GhostBatchNorm1d, guard=False)
    layer(torch.full((10, 3), float("nan")))
    assert layer.running_mean.isnan().all()
    assert layer.num_batches_tracked.item() == 1


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_counts_a_mini_batch_once(guard, use_reentrant):
    layer = layer_of(GhostBatchNorm1d, guard=guard)
    plain = copy.deepcopy(layer)
    x = torch.randn(10, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(plain(x).square().sum(), x)
    checkpoint(layer, x, use_reentrant=use_reentrant).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)
    for key, value in plain.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)


def test_gradients_of_gradients_are_right():
    layer = layer_of(GhostBatchNorm1d, dtype=torch.float64, activation="tanh")
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))
