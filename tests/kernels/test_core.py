"""The compiled core against the specification in float64, and against itself."""

import math
import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bnkit.kernels import core, reference
from bnkit.kernels.activations import ACTIVATIONS, CODES, find_activation
from cases import CASES, Case, seeded

EPS = 1e-5
# Of the result; in half precision it is that of the output's last digit.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 2e-3}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
LAYOUTS = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
THREADS = pytest.mark.parametrize("threads", [1, 2, 5])


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(x, seed, *, parts=("weight", "bias", "residual")):
    """Return dy, mean, variance, weight, bias and residual for `x`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    generator = seeded(seed)

    def like(shape, dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    channels = x.shape[1]
    dy, residual = like(x.shape, x.dtype), like(x.shape, x.dtype)
    mean, variance = like(channels, wide), like(channels, wide).abs() + 0.1
    weight, bias = like(channels, wide), like(channels, wide)
    return (
        dy,
        mean,
        variance,
        weight if "weight" in parts else None,
        bias if "bias" in parts else None,
        residual if "residual" in parts else None,
    )


def results(kernels, x, drawn, activation, *, training, eps=EPS):
    """Return y, dx, dweight, dbias, dresidual; the backward gets the forward's statistics."""
    dy, mean, variance, weight, bias, residual = drawn
    given = {"eps": eps, "activation": activation, "residual": residual}
    if training:
        y, mean, variance = kernels.batch_norm_forward(x, weight, bias, **given)
    else:
        y = kernels.batch_norm_inference(x, mean, variance, weight, bias, **given)
    terms = x, mean, variance, weight, bias
    return y, *kernels.batch_norm_backward(dy, *terms, **given, training=training)


def in_float64(x, drawn, activation, *, training):
    wide = [None if t is None else t.double() for t in drawn]
    return results(reference, x.double(), wide, activation, training=training)


def assert_agree(x, drawn, activation, *, training, condition=1.0, scale=1.0):
    """Compare each result with float64, on the scale of the terms that it sums."""
    dy, variance = drawn[0].double(), drawn[2].double()
    if training:
        variance = x.double().transpose(0, 1).flatten(1).var(1, correction=0)
    slope = float((variance + EPS).rsqrt().max())
    reach = 1 + float(dy.abs().max())
    amount = float(dy.abs().movedim(1, 0).flatten(1).sum(1).max())
    size = 5.0 if training else 5.0 + scale * slope
    scales = (size, 5 * slope * reach * size, 5 * amount * size, amount, reach)
    rounding = {torch.float64: 2**-53}.get(x.dtype, 2**-24) * condition
    tolerance = TOLERANCE[x.dtype] + rounding
    ours = results(core, x, drawn, activation, training=training)
    theirs = in_float64(x, drawn, activation, training=training)
    for got, expected, of in zip(ours, theirs, scales, strict=True):
        if expected is None:
            assert got is None
            continue
        torch.testing.assert_close(
            got.double(), expected, rtol=tolerance, atol=float(tolerance * of)
        )


@TRAINING
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in CASES for dtype in TOLERANCE if case.fits(dtype)],
    ids=str,
)
def test_awkward_inputs_agree_with_float64(case: Case, dtype, training):
    # A smooth activation: at a kink the last digit would decide the gradient.
    x = case.input(dtype)
    assert_agree(
        x,
        draw(x, 1),
        "silu",
        training=training,
        condition=case.condition(EPS),
        scale=case.scale * 8 + abs(case.shift),
    )


@TRAINING
@LAYOUTS
@DTYPES
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("parts", [("weight", "bias", "residual"), ()], ids=["all", "x alone"])
def test_every_activation_agrees_with_float64(activation, parts, dtype, last, training):
    # 37 channels of 99 values: full vectors of lanes and ends in both layouts.
    x = torch.randn(3, 37, 9, 11, generator=seeded(0), dtype=torch.float64).to(dtype)
    x = channels_last(x) if last else x
    assert_agree(x, draw(x, 1, parts=parts), activation, training=training)


@pytest.mark.parametrize("parts", [("weight",), ("bias",), ("residual",), ("weight", "residual")])
def test_parameters_and_residual_may_be_missing(parts):
    x = torch.randn(4, 5, 6)
    assert_agree(x, draw(x, 1, parts=parts), "relu", training=True)


@LAYOUTS
@THREADS
@pytest.mark.parametrize(
    "shape",
    [
        (7, 3, 90, 91),  # few channels: each is cut into parts
        (40, 70, 23, 24),  # blocks of channels for each thread
        (3, 40, 5000),  # planes longer than a float32 lane may sum
        (65, 200, 3, 3),
    ],
    ids=str,
)
def test_work_is_cut_into_tasks_without_a_trace(shape, threads, last):
    torch.set_num_threads(threads)
    x = torch.randn(shape, generator=seeded(0))
    x = channels_last(x) if last else x
    drawn = draw(x, 1)
    assert_agree(x, drawn, "gelu", training=True)
    first, *others = (results(core, x, drawn, "gelu", training=True) for _ in range(4))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@LAYOUTS
@THREADS
@pytest.mark.parametrize(
    "shape",
    # The last three: planes that fill few lanes of a vector, which so add up many values.
    [(16, 3, 96, 96), (64, 8, 7, 7), (2**16, 5), (4096, 3, 2), (4096, 3, 9), (4096, 3, 17)],
    ids=str,
)
def test_variance_is_exact_where_the_mean_is_far_from_zero(shape, threads, last):
    torch.set_num_threads(threads)
    x = torch.randn(shape, generator=seeded(0)) + 4096
    x = channels_last(x) if last else x
    _, mean, variance = core.batch_norm_forward(x, None, None, eps=EPS)
    channels = x.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(variance.double(), channels.var(1, correction=0), rtol=2e-7, atol=0)
    torch.testing.assert_close(mean.double(), channels.mean(1), rtol=2**-24, atol=0)


SPACES = [(), (1, 1), (2,), (2, 2), (3, 3), (15,), (4, 4), (17,), (6, 6), (9, 9)]


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_errors_of_the_gradients_sums_are_at_most_twice_torchs(space, channels, dtype, last):
    # In eval mode, where nothing else adds an error. torch's sums of short planes are very good.
    squares = torch.zeros(2, 2)  # (ours and torch's, dweight and dbias)
    for seed in range(96 // channels):
        x = torch.randn(256, channels, *space, generator=seeded(seed)).to(dtype)
        x = channels_last(x) if last else x
        dy, mean, variance, weight, bias, _ = draw(x, seed, parts=("weight", "bias"))
        dy = torch.empty_like(x).copy_(dy)
        terms = mean, variance, weight, bias
        ours = core.batch_norm_backward(dy, x, *terms, eps=EPS, training=False)[1:3]
        leaves = weight.requires_grad_(), bias.requires_grad_()
        y = F.batch_norm(x, mean, variance, *leaves, eps=EPS)
        theirs = torch.autograd.grad(y, leaves, dy)
        wide = (t.detach().double() for t in (dy, x, *terms))
        exact = reference.batch_norm_backward(*wide, eps=EPS, training=False)[1:3]
        squares += torch.tensor(
            [
                [(f - e).square().sum() for f, e in zip(found, exact, strict=True)]
                for found in (ours, theirs)
            ]
        )
    assert (squares[0] <= 2**2 * squares[1]).all(), (squares[0] / squares[1]).sqrt()


@LAYOUTS
@pytest.mark.parametrize("shape", [(512, 32), (512, 3, 15), (64, 3, 6, 6), (32, 8, 1000)], ids=str)
def test_errors_of_float64_sums_are_at_most_twice_torchs(shape, last):
    x = torch.zeros(shape, dtype=torch.float64)
    x = channels_last(x) if last else x
    found = {"ours": [], "theirs": []}
    for seed in range(8):
        dy, mean, variance, weight, bias, _ = draw(x, seed, parts=("weight", "bias"))
        dy = torch.empty_like(x).copy_(dy)
        terms = x, mean, variance, weight, bias
        sums = core.batch_norm_backward(dy, *terms, eps=EPS, training=False)[2]
        y = F.batch_norm(x, mean, variance, weight, bias.requires_grad_(), eps=EPS)
        exact = [math.fsum(of_channel.flatten().tolist()) for of_channel in dy.movedim(1, 0)]
        exact = torch.tensor(exact, dtype=torch.float64)
        found["ours"].append(sums - exact)
        found["theirs"].append(torch.autograd.grad(y, bias, dy)[0] - exact)
    ours, theirs = (torch.cat(errors).norm() for errors in found.values())
    assert ours <= 2 * theirs


@LAYOUTS
def test_variance_is_exact_where_the_mean_jumps(last):
    # The first values are no guide to the others, nor is any batch to the next.
    x = torch.randn(64, 4, 9, 9, generator=seeded(0))
    x[:3] += 3000
    x[30:] -= 500
    x = channels_last(x) if last else x
    _, _, variance = core.batch_norm_forward(x, None, None, eps=EPS)
    exact = x.double().movedim(1, 0).flatten(1).var(1, correction=0)
    torch.testing.assert_close(variance.double(), exact, rtol=1e-6, atol=0)


@LAYOUTS
@DTYPES
def test_a_constant_channel_gives_exactly_the_bias(dtype, last):
    bias = torch.tensor([0.3, -7.0], dtype=torch.promote_types(dtype, torch.float32))
    x = torch.full((100, 2, 9), 0.1, dtype=dtype)
    x = channels_last(x) if last else x
    y, _, variance = core.batch_norm_forward(x, None, bias, eps=EPS)
    assert torch.equal(y, bias.to(dtype)[:, None].expand(100, 2, 9))
    assert variance.tolist() == [0, 0]


@LAYOUTS
@TRAINING
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("place", ["x", "dy", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_that_are_not_finite_spread_as_in_the_specification(
    place, bad, activation, training, last, dtype
):
    x = torch.randn(4, 3, 5, 7, generator=seeded(0)).to(dtype)
    x = channels_last(x) if last else x
    drawn = draw(x, 1)
    {"x": x, "dy": drawn[0], "residual": drawn[5]}[place][2, 1, 3, 3] = bad
    ours = results(core, x, drawn, activation, training=training)
    theirs = results(reference, x, drawn, activation, training=training)
    if activation == "gelu" and torch.isnan(theirs[0][2, 1, 3, 3]):
        # torch's gelu of infinity is infinity or NaN, by the value's place in the vector.
        assert ours[0][2, 1, 3, 3].isnan() or ours[0][2, 1, 3, 3].isinf()
        ours, theirs = ours[1:], theirs[1:]
    for got, expected in zip(ours, theirs, strict=True):
        for same in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(same(got), same(expected))


@TRAINING
def test_large_and_small_magnitudes_neither_overflow_nor_vanish(training):
    x = torch.randn(6, 3, 40, generator=seeded(0))
    for factor in (1e17, 1e-17):
        drawn = draw(x, 1, parts=())
        dy, mean, variance = drawn[0], drawn[1] * factor, drawn[2] * factor**2
        ours, theirs = (
            results(
                kernels,
                x * factor,
                (dy, mean, variance, None, None, None),
                None,
                training=training,
                eps=0.0,
            )
            for kernels in (core, reference)
        )
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours[1] * factor, theirs[1] * factor, rtol=1e-4, atol=1e-5)


shapes = st.tuples(st.integers(2, 9), st.integers(1, 70), st.integers(1, 70))


@settings(deadline=None, max_examples=60)
@given(
    shape=shapes,
    seed=st.integers(0, 2**32),
    last=st.booleans(),
    activation=st.sampled_from([None, "silu", "tanh"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_shape_agrees_with_float64(shape, seed, last, activation, dtype):
    x = torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)
    x = channels_last(x) if last else x
    assert_agree(x, draw(x, seed), activation, training=True, condition=30.0)


@LAYOUTS
@DTYPES
def test_inference_with_the_statistics_of_the_batch_is_training(dtype, last):
    x = torch.randn(8, 37, 9, generator=seeded(0), dtype=torch.float64).to(dtype)
    x = channels_last(x) if last else x
    _, _, _, weight, bias, residual = draw(x, 1)
    given = {"eps": EPS, "activation": "relu", "residual": residual}
    y, mean, variance = core.batch_norm_forward(x, weight, bias, **given)
    again = core.batch_norm_inference(x, mean, variance, weight, bias, **given)
    assert torch.equal(again, y)


# Tensors


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(4, 6),
        torch.randn(4, 6, 5),
        channels_last(torch.randn(4, 6, 5)),
        torch.randn(4, 6, 5, 3).to(memory_format=torch.channels_last),
        torch.randn(2, 6, 5, 3, 2).to(memory_format=torch.channels_last_3d),
        torch.randn(64, 64, 16, 17).to(memory_format=torch.channels_last),  # recycled memory
    ],
    ids=lambda x: str(x.stride()),
)
def test_memory_format_is_that_of_torch(x):
    dy, _, _, weight, bias, residual = draw(x, 1)  # in planes, whatever x is
    given = {"eps": EPS, "activation": "relu", "residual": residual}
    y, mean, variance = core.batch_norm_forward(x, weight, bias, **given)
    gradients = core.batch_norm_backward(dy, x, mean, variance, weight, bias, **given)
    assert gradients[0].stride() == gradients[3].stride() == x.stride()
    # As torch: channels-last memory stays so in four and five dimensions, not in three.
    assert y.stride() == F.batch_norm(x, None, None, training=True).stride()


@DTYPES
def test_statistics_and_gradients_keep_their_dtypes(dtype):
    x = torch.randn(4, 3, 5).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    dy, _, _, weight, bias, residual = draw(x, 1)
    weight = weight.to(dtype)
    given = {"eps": EPS, "activation": "relu", "residual": residual}
    y, mean, variance = core.batch_norm_forward(x, weight, bias, **given)
    assert (y.dtype, mean.dtype, variance.dtype) == (dtype, wide, wide)
    gradients = core.batch_norm_backward(dy, x, mean, variance, weight, bias, **given)
    assert [g.dtype for g in gradients] == [dtype, dtype, wide, dtype]


def test_nothing_is_recorded_for_autograd():
    x = torch.randn(4, 3, requires_grad=True)
    y, mean, variance = core.batch_norm_forward(x, None, None, eps=EPS)
    assert not any(t.requires_grad for t in (y, mean, variance))


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)], ids=str)
def test_an_empty_input_has_no_statistics(shape):
    x = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"is empty"):
        core.batch_norm_forward(x, None, None, eps=EPS)
    mean = variance = torch.ones(3)
    y = core.batch_norm_inference(x, mean, variance, None, None, eps=EPS)
    assert y.shape == shape
    terms = x, mean, variance, mean, None
    gradients = core.batch_norm_backward(y, *terms, eps=EPS, training=False)
    assert gradients[0].shape == shape
    assert gradients[1].tolist() == [0, 0, 0]


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"`x` is Int: the core computes float32, float64"):
        core.batch_norm_forward(torch.zeros(4, 3, dtype=torch.int32), None, None, eps=EPS)


# Threads and processes


def busy(seed=0):
    x = torch.randn(32, 16, 30, 30, generator=seeded(seed))
    return results(core, x, draw(x, seed), "relu", training=True)


def test_python_threads_may_call_at_once():
    torch.set_num_threads(2)
    expected = [busy(seed) for seed in range(3)]
    wrong = []

    def repeat(seed):
        for _ in range(20):
            agree = all(torch.equal(a, b) for a, b in zip(busy(seed), expected[seed], strict=True))
            wrong.extend([] if agree else [seed])

    threads = [threading.Thread(target=repeat, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def in_a_process(program, **variables):
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


COMMON = """
import os, threading, torch
from bnkit.kernels import core
torch.set_num_threads(2)
def run():
    x = torch.randn(64, 32, 30, 30, generator=torch.Generator().manual_seed(0))
    return core.batch_norm_forward(x, None, None, eps=1e-5, activation="relu")[0].sum().item()
"""


def test_workers_of_a_data_loader_may_call_it_after_their_parent_did():
    program = """
from torch.utils.data import DataLoader
expected = run()
class Values:
    def __len__(self): return 6
    def __getitem__(self, i): return torch.tensor(run())
loader = DataLoader(Values(), num_workers=2, multiprocessing_context="fork")
print(all(torch.allclose(v, torch.tensor(expected)) for v in loader))
"""
    assert in_a_process(COMMON + program) == ["True"]


# Sizes on both sides of every width and threshold


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 8, 15, 16, 17, 33, 63, 64, 65, 130])
@pytest.mark.parametrize("rows", [2, 3, 5, 31, 32, 33, 63, 64, 65, 129])
@pytest.mark.parametrize("space", [(), (2,), (15,), (16,), (17,), (7, 7), (9, 11)], ids=str)
@LAYOUTS
def test_every_size_agrees_with_float64(rows, channels, space, last):
    x = torch.randn(rows, channels, *space, generator=seeded(0))
    x = channels_last(x) if last else x
    assert_agree(x, draw(x, 1), "tanh", training=True, condition=30.0)


@pytest.mark.parametrize("activation", ["silu", "gelu", "sigmoid", "tanh"])
@pytest.mark.parametrize(("dtype", "ulp"), [(torch.float32, 2**-23), (torch.float64, 2**-52)])
def test_activations_are_exact_to_three_units_in_the_last_place(activation, dtype, ulp):
    z = torch.linspace(-20, 20, 200_001, dtype=torch.float64).to(dtype)[:, None]
    zero, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    y = core.batch_norm_inference(z, zero, one, None, None, eps=0.0, activation=activation)
    exact = find_activation(activation).function(z.double())
    if activation == "gelu":  # torch's own loses the digits of the lower tail
        exact = z.double() * torch.special.erfc(-z.double() * 0.5**0.5) / 2
    bound = ulp * (3 if dtype == torch.float32 else 16) * exact.abs()
    if activation == "gelu":  # in the tail exp(−z²/2) magnifies the rounding of z²
        bound = bound * (1 + z.double().square())
    assert ((y.double() - exact).abs() <= bound + 1e-37).all()


# In one call: gradients, running averages, guard


def layer_state(dtype=torch.float32):
    running = torch.randn(3, generator=seeded(4)), torch.rand(3, generator=seeded(5))
    return *(t.to(dtype) for t in running), torch.tensor(7), torch.tensor(1)


def train(x, state, *, guard=True, momentum=0.3, activation="relu", residual=None, **affine):
    weight, bias = affine.get("weight"), affine.get("bias")
    code = CODES[activation]
    return core.by_batch(x, weight, bias, residual, *state, momentum, EPS, code, guard)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_running_averages_are_those_of_torch(momentum, dtype):
    x = torch.randn(20, 3, 4, generator=seeded(0)).to(dtype) * 3 + 1
    ours, theirs = layer_state(), layer_state()
    train(x, ours, momentum=momentum)
    F.batch_norm(x, *theirs[:2], training=True, momentum=momentum)
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=2e-6, atol=1e-6)
    assert (ours[2], ours[3]) == (8, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@LAYOUTS
def test_a_mini_batch_that_is_not_finite_is_counted_and_kept_out_by_the_guard(bad, last):
    x = torch.randn(20, 3, 4, generator=seeded(0))
    x = channels_last(x) if last else x
    x[7, 1, 2] = bad
    guarded, open_to_it, theirs, before = (layer_state() for _ in range(4))
    y = train(x, guarded)
    assert torch.equal(y.isnan(), train(x, open_to_it, guard=False).isnan())
    F.batch_norm(x, *theirs[:2], training=True, momentum=0.3)
    assert all(torch.equal(a, b) for a, b in zip(guarded[:2], before[:2], strict=True))
    assert [t.item() for t in guarded[2:]] == [7, 2]
    torch.testing.assert_close(open_to_it[:2], theirs[:2], equal_nan=True)
    assert [t.item() for t in open_to_it[2:]] == [8, 1]


def test_what_is_changed_in_place_has_a_new_version():
    state = layer_state()
    before = [t._version for t in state]
    train(torch.randn(5, 3), state)
    assert [t._version for t in state] == [v + 1 for v in before[:3]] + before[3:]
    train(torch.full((5, 3), float("nan")), state)
    assert [t._version for t in state] == [v + 1 for v in before]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("parts", [("weight", "bias", "residual"), ("bias",), ()], ids=str)
def test_gradients_in_one_call_are_those_of_the_specification(dtype, activation, parts):
    x = torch.randn(6, 5, 7, generator=seeded(0), dtype=torch.float64).to(dtype)
    drawn = draw(x, 1, parts=parts)
    dy, _, _, weight, bias, residual = drawn
    leaves = [t.requires_grad_() for t in (x, weight, bias, residual) if t is not None]
    y = core.by_batch(x, weight, bias, residual, *[None] * 4, 0.0, EPS, CODES[activation], False)
    ours = torch.autograd.grad(y, leaves, dy)
    _, *theirs = results(core, x.detach(), drawn, activation, training=True)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * 4}
    for mine, other in zip(ours, [t for t in theirs if t is not None], strict=True):
        torch.testing.assert_close(mine, other.to(mine.dtype), **tolerance)


X = torch.randn(6, 3, 4)


@pytest.mark.parametrize(
    "given",
    [
        {"x": X.to(torch.int32)},
        {"x": X[:, ::2]},
        {"x": X.transpose(0, 2)},
        {"x": X[:0]},
        {"x": X[:1, :, :1]},
        {"x": X.flatten()},
        {"x": X.to("meta")},
        {"x": X.to_sparse()},
        {"weight": torch.ones(4)},
        {"weight": torch.ones(3, dtype=torch.float64)},
        {"bias": torch.ones(3, 1)},
        {"residual": X[:5]},
        {"residual": X.double()},
        {"running_var": None},
        {"running_mean": torch.zeros(3, requires_grad=True)},
        {"num_batches_tracked": torch.tensor(0.0)},
        {"eps": 0.0},
    ],
    ids=lambda given: next(f"{name} {getattr(v, 'shape', v)}" for name, v in given.items()),
)
def test_what_is_not_for_the_core_is_left_as_it_is(given):
    state = dict(
        zip(
            ("running_mean", "running_var", "num_batches_tracked", "non_finite_batches"),
            layer_state(),
            strict=True,
        )
    )
    arguments = {"x": X, "weight": None, "bias": None, "residual": None, **state, **given}
    eps = arguments.pop("eps", EPS)
    assert core.by_batch(*arguments.values(), 0.1, eps, 0, True) is None
    for name, value in zip(state, layer_state(), strict=True):
        if name not in given:
            assert torch.equal(state[name], value)


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("value", [None, torch.nan, torch.inf])
@pytest.mark.parametrize("shape", [(6, 3), (6, 33, 4), (64, 64, 96)])
def test_running_statistics_and_guard_are_those_of_the_specification(shape, value, guarded):
    x = torch.randn(shape)
    if value is not None:
        x.view(-1)[-1] = value
    mean, variance = torch.randn(shape[1]), torch.rand(shape[1])
    counts = torch.tensor(4), torch.tensor(2)
    *expected, entered = reference.running_statistics(
        mean,
        variance,
        *reference.batch_norm_forward(x, None, None, eps=EPS)[1:],
        count=x.numel() // shape[1],
        momentum=0.3,
        guarded=guarded,
    )
    core.by_batch(x, None, None, None, mean, variance, *counts, 0.3, EPS, 0, guarded)
    torch.testing.assert_close([mean, variance], expected, equal_nan=True)
    assert [count.item() for count in counts] == ([5, 2] if entered else [4, 3])


@pytest.mark.parametrize("cpu", ["baseline", "avx2"])
def test_the_code_for_older_cpus_computes_the_same(cpu):
    program = """
import torch
from bnkit.kernels import core, reference
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for shape in ((65, 33), (5, 17, 3), (9, 6, 37), (33, 5, 7, 9)):
        for activation in (None, "relu", "gelu", "tanh"):
            x, dy, r = torch.randn(3, *shape).to(dtype)
            w, b = torch.randn(2, shape[1])
            ending = {"eps": 1e-5, "activation": activation, "residual": r}
            results = []
            for kernels in (core, reference):
                y, *statistics = kernels.batch_norm_forward(x, w, b, **ending)
                gradients = kernels.batch_norm_backward(dy, x, *statistics, w, b, **ending)
                results.append((y, *statistics, *gradients))
            near = max(1e-5, 4 * torch.finfo(dtype).eps)
            for ours, theirs in zip(*results):
                torch.testing.assert_close(ours, theirs, rtol=near, atol=near * 20)
print("same")
"""
    assert in_a_process(program, BNKIT_CPU=cpu) == ["same"]
