import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnkit.layers.accumulated import (
    AccumulatedBatchNorm1d,
    AccumulatedBatchNorm2d,
    AccumulatedBatchNorm3d,
    reset_accumulation_,
)
from bnkit.observation import normalising_by_batch_statistics
from cases import equal

PAIRS = {
    AccumulatedBatchNorm1d: nn.BatchNorm1d,
    AccumulatedBatchNorm2d: nn.BatchNorm2d,
    AccumulatedBatchNorm3d: nn.BatchNorm3d,
}
SHAPES = pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (AccumulatedBatchNorm1d, (3,)),
        (AccumulatedBatchNorm1d, (3, 5)),
        (AccumulatedBatchNorm2d, (3, 4, 2)),
        (AccumulatedBatchNorm3d, (3, 2, 3, 2)),
    ],
    ids=["1d", "1d with length", "2d", "3d"],
)
UNEVEN = (4, 2, 7)  # rows of the micro-batches of one accumulation


def micro_batches(shape, sizes=UNEVEN, *, dtype=torch.float64):
    # Each has another mean and spread, so that pooling shows, the variance between them too.
    return [
        (torch.randn(n, *shape, dtype=torch.float64) * (1 + i) + 5 * i).to(dtype)
        for i, n in enumerate(sizes)
    ]


def make(kind, *, dtype=torch.float64, **options):
    layer = kind(3, dtype=dtype, **{"micro_batches": len(UNEVEN)} | options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(3))
    return layer


def formula(layer, earlier, x):
    """The definition: x normalised by the moments of `earlier`, as constants, and x together."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    pooled = torch.cat([*(e.detach() for e in earlier), x])
    mean = pooled.mean(axes, keepdim=True)
    variance = (pooled - mean).square().mean(axes, keepdim=True)
    x_hat = (x - mean) / (variance + layer.eps).sqrt()
    weight, bias = (
        torch.full((3,), default, dtype=x.dtype) if parameter is None else parameter
        for parameter, default in ((layer.weight, 1.0), (layer.bias, 0.0))
    )
    return x_hat * weight.view(-1, *[1] * (x.dim() - 2)) + bias.view(-1, *[1] * (x.dim() - 2))


def assert_same_state(ours, theirs, *, same=None, **tolerance):
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    for key, value in mine.items():
        if same:
            assert same(value, other[key]), key
        else:
            torch.testing.assert_close(value, other[key], **tolerance)


# What is computed


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}, {"eps": 0.5}], ids=str)
@SHAPES
def test_each_micro_batch_is_normalised_by_those_up_to_it_with_gradients_of_its_own(
    kind, shape, options
):
    layer = make(kind, **options)
    for _ in range(2):  # the second accumulation knows nothing of the first
        earlier = []
        for x in micro_batches(shape):
            leaves = [x.requires_grad_(), *layer.parameters()]
            ours, expected = layer(x), formula(layer, earlier, x)
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
            cotangent = torch.randn_like(x)
            torch.testing.assert_close(
                torch.autograd.grad(ours, leaves, cotangent),
                torch.autograd.grad(expected, leaves, cotangent),
                rtol=1e-9,
                atol=1e-9,
            )
            earlier.append(x)


@pytest.mark.parametrize("momentum", [0.1, None])
@SHAPES
def test_running_statistics_are_those_of_torch_on_the_whole_mini_batch(kind, shape, momentum):
    layer, whole = make(kind, momentum=momentum), PAIRS[kind](3, momentum=momentum)
    whole = whole.double()
    whole.load_state_dict(layer.state_dict())
    for _ in range(3):
        parts = micro_batches(shape)
        for x in parts[:-1]:
            layer(x)
            assert_same_state(layer, whole, rtol=1e-12, atol=0)  # nothing yet
        last = layer(parts[-1])
        expected = whole(torch.cat(parts))[-len(last) :]
        torch.testing.assert_close(last, expected)  # the last micro-batch knows all
        assert_same_state(layer, whole, rtol=1e-10, atol=1e-10)


def test_a_mean_far_from_zero_costs_no_digits():
    layer = AccumulatedBatchNorm1d(1, micro_batches=2, momentum=1.0)
    parts = [torch.randn(32, 1) + 1e4 for _ in range(2)]
    outputs = [layer(x) for x in parts]
    exact = torch.cat(parts).double()
    torch.testing.assert_close(layer.running_var.double(), exact.var(0), rtol=1e-6, atol=0)
    expected = (exact[32:] - exact.mean(0)) / (exact.var(0, correction=0) + layer.eps).sqrt()
    torch.testing.assert_close(outputs[1].double(), expected, rtol=0, atol=2e-3)  # a float32 ulp


@SHAPES
def test_one_micro_batch_is_torchs_layer_to_the_last_bit(kind, shape):
    layer, theirs = kind(3, micro_batches=1), PAIRS[kind](3)
    for training in (True, True, False, True):
        x = torch.randn(6, *shape)
        y, expected = layer.train(training)(x), theirs.train(training)(x)
        assert equal(y, expected)
        assert_same_state(layer, theirs, same=equal)


@SHAPES
def test_the_first_micro_batch_is_torchs_layer_to_the_last_bit(kind, shape):
    x = torch.randn(6, *shape)
    assert equal(kind(3, micro_batches=4)(x), PAIRS[kind](3)(x))


def test_gradients_of_gradients_follow_the_formula():
    layer = make(AccumulatedBatchNorm1d)
    first, second, _ = micro_batches((3,))
    layer(first)
    before = copy.deepcopy(layer)

    def ours(x):
        return copy.deepcopy(before)(x)

    x = second.requires_grad_()
    assert torch.autograd.gradgradcheck(ours, (torch.cat([x, x.detach() * 2 + 1]),))


def test_activation_and_residual_come_after_it():
    ours, plain = (AccumulatedBatchNorm1d(3, micro_batches=3, activation=a) for a in ("relu", None))
    for x in micro_batches((3,), dtype=torch.float32):
        assert torch.equal(ours(x, x), torch.relu(plain(x) + x))


def test_without_running_statistics_micro_batches_are_pooled_all_the_same():
    layer = make(AccumulatedBatchNorm1d, track_running_stats=False)
    parts = micro_batches((3,))
    for i, x in enumerate(parts):
        torch.testing.assert_close(layer(x), formula(layer, parts[:i], x))
    x = parts[0]
    torch.testing.assert_close(layer.eval()(x), formula(layer, [], x))  # as torch


# When it counts


def test_eval_mode_in_between_disturbs_nothing():
    quiet, disturbed = (AccumulatedBatchNorm1d(3, micro_batches=3) for _ in range(2))
    for x in micro_batches((3,), dtype=torch.float32):
        expected = quiet(x)
        disturbed.eval()(torch.randn(5, 3))
        with normalising_by_batch_statistics(disturbed):
            disturbed(torch.randn(5, 3))
        assert torch.equal(disturbed.train()(x), expected)
    assert_same_state(disturbed, quiet, same=torch.equal)


def test_an_unfinished_accumulation_can_be_forgotten():
    first, second, third = micro_batches((3,), dtype=torch.float32)
    layer, fresh = (AccumulatedBatchNorm1d(3, micro_batches=2) for _ in range(2))
    layer(first)
    assert layer.micro_batch == 1
    layer.reset_accumulation()
    for x in (second, third):
        assert torch.equal(layer(x), fresh(x))
    assert_same_state(layer, fresh, same=torch.equal)


def test_all_unfinished_accumulations_of_a_model_are_forgotten_at_once():
    model = nn.Sequential(*(AccumulatedBatchNorm1d(3, micro_batches=k) for k in (1, 2, 3)))
    model(torch.randn(4, 3))
    assert reset_accumulation_(model) == 2
    assert [layer.micro_batch for layer in model] == [0, 0, 0]


def test_a_model_without_accumulations_is_refused():
    with pytest.raises(ValueError, match=r"`model` \(ReLU\) has no accumulated batch norm"):
        reset_accumulation_(nn.ReLU())


def test_backward_may_follow_after_all_forwards():
    layer = make(AccumulatedBatchNorm1d)
    parts = [x.requires_grad_() for x in micro_batches((3,))]
    together = sum(layer(x).square().sum() for x in parts)
    gradients = torch.autograd.grad(together, parts)
    for i, x in enumerate(parts):
        expected = torch.autograd.grad(formula(layer, parts[:i], x).square().sum(), x)[0]
        torch.testing.assert_close(gradients[i], expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("together", [True, False], ids=["all forwards first", "in turns"])
def test_activation_checkpointing_counts_a_micro_batch_once(use_reentrant, together):
    layer, plain = (AccumulatedBatchNorm1d(3, micro_batches=3) for _ in range(2))
    for _ in range(2):
        parts = [x.requires_grad_() for x in micro_batches((3,), dtype=torch.float32)]
        losses = [plain(x).pow(3).sum() for x in parts]
        expected = torch.autograd.grad(sum(losses), parts)
        waiting = []
        for x in parts:
            y = checkpoint(layer, x, use_reentrant=use_reentrant)
            waiting.append(y.pow(3).sum())
            if not together:
                waiting.pop().backward()
        for loss in waiting:
            loss.backward()
        for x, gradient in zip(parts, expected, strict=True):
            torch.testing.assert_close(x.grad, gradient, rtol=0, atol=0)
        assert_same_state(layer, plain, same=torch.equal)


def test_a_recomputed_micro_batch_that_is_not_finite_is_known_again():
    layer = AccumulatedBatchNorm1d(1, micro_batches=2)
    x = torch.tensor([[1.0], [float("nan")]], requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert x.grad.isnan().all()


def test_a_recomputed_micro_batch_that_is_unknown_is_refused():
    layer = AccumulatedBatchNorm1d(3, micro_batches=2)
    y = checkpoint(layer, torch.randn(4, 3, requires_grad=True), use_reentrant=False)
    layer.reset_accumulation()
    with pytest.raises(RuntimeError, match=r"runs again inside backward\(\).*not among its last 2"):
        y.sum().backward()


# Faults


@pytest.mark.parametrize("poisoned", [0, 1, 2])
def test_an_accumulation_that_is_not_finite_stays_out_of_the_running_statistics(poisoned):
    layer, clean = (AccumulatedBatchNorm1d(3, micro_batches=3) for _ in range(2))
    parts = micro_batches((3,), dtype=torch.float32)
    bad = [x.clone() for x in parts]
    bad[poisoned][0, 1] = float("nan")
    finite = [layer(x).isfinite().all().item() for x in bad]
    assert finite == [i < poisoned for i in range(3)]
    assert_same_state(layer, clean, same=torch.equal)
    assert layer.non_finite_batches.item() == 1
    for x in parts:  # and the next one begins anew
        assert torch.equal(layer(x), clean(x))
    assert_same_state(layer, clean, same=torch.equal)


def test_without_the_guard_it_enters():
    layer = AccumulatedBatchNorm1d(3, micro_batches=2, guard=False)
    layer(torch.full((4, 3), float("nan")))
    layer(torch.randn(4, 3))
    assert layer.running_mean.isnan().all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [(1, "has 1 value per channel"), (0, r"`input` of shape \(0, 3\) is empty")],
)
def test_a_micro_batch_without_a_variance_is_refused_and_changes_nothing(rows, message):
    layer, plain = (AccumulatedBatchNorm1d(3, micro_batches=2) for _ in range(2))
    first, second, _ = micro_batches((3,), dtype=torch.float32)
    assert torch.equal(layer(first), plain(first))
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(rows, 3))
    assert torch.equal(layer(second), plain(second))
    assert_same_state(layer, plain, same=torch.equal)


@pytest.mark.parametrize("number", [0, -1, 2.0, "2", True, None])
def test_a_number_of_micro_batches_that_is_none_is_refused(number):
    with pytest.raises(ValueError, match=rf"`micro_batches` is {number!r}: pass the number"):
        AccumulatedBatchNorm1d(3, micro_batches=number)


# What others do with layers


@pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.__name__)
def test_layers_and_their_state_are_those_of_torch_to_others(kind):
    layer, theirs = kind(3, micro_batches=4), PAIRS[kind](3)
    assert isinstance(layer, PAIRS[kind])
    theirs.load_state_dict(layer.state_dict())
    layer.load_state_dict(theirs.state_dict())
    assert repr(layer) == f"Accumulated{repr(theirs)[:-1]}, micro_batches=4)"


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
def test_copies_go_on_with_the_accumulation_on_their_own(duplicate):
    layer = AccumulatedBatchNorm1d(3, micro_batches=3)
    first, second, third = micro_batches((3,), dtype=torch.float32)
    layer(first)
    other = duplicate(layer)
    for x in (second, third):
        assert torch.equal(layer(x), other(x))
    assert_same_state(layer, other, same=torch.equal)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_float32_state(dtype):
    layer, wide = (AccumulatedBatchNorm1d(3, micro_batches=3) for _ in range(2))
    for x in micro_batches((3,), dtype=dtype):
        leaf = x.requires_grad_()
        y = layer(leaf)
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), wide(x.float()), rtol=0.01, atol=0.01)
        assert torch.autograd.grad(y.square().sum(), leaf)[0].dtype == dtype
    assert_same_state(layer, wide)


def test_autocast_leaves_it_as_it_is():
    model = nn.Sequential(nn.Linear(3, 3), AccumulatedBatchNorm1d(3, micro_batches=2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            y = model(torch.randn(8, 3))
            y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert model[1].running_mean.dtype == torch.float32
    assert model[1].num_batches_tracked.item() == 1


# torch's compiler does what torch warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_layers_compile_as_one_graph_for_each_micro_batch(backend):
    torch.compiler.reset()
    ours, eager = (AccumulatedBatchNorm1d(3, micro_batches=3) for _ in range(2))
    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    for _ in range(2):
        for x in micro_batches((3,), sizes=(5, 5, 5), dtype=torch.float32):
            leaves = [x.requires_grad_(), x.clone().detach().requires_grad_()]
            y, expected = compiled(leaves[0]), eager(leaves[1])
            torch.testing.assert_close(y, expected)
            y.pow(3).sum().backward()
            expected.pow(3).sum().backward()
            torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
        assert_same_state(ours, eager)
    x = torch.randn(5, 3)
    ours.eval()
    torch.testing.assert_close(compiled(x), eager.eval()(x))
