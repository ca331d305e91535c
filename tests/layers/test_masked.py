import asyncio
import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnkit.kernels.activations import ACTIVATIONS
from bnkit.layers import masks
from bnkit.layers.masked import MaskedBatchNorm1d, MaskedBatchNorm2d, MaskedBatchNorm3d
from bnkit.layers.masks import current_mask, fit, mask
from bnkit.observation import normalising_by_batch_statistics
from bnkit.surgery.normalized import Layout, NormalizedOutput, own_batch_norm
from cases import equal, since, torchs

PAIRS = {
    MaskedBatchNorm1d: nn.BatchNorm1d,
    MaskedBatchNorm2d: nn.BatchNorm2d,
    MaskedBatchNorm3d: nn.BatchNorm3d,
}
KINDS = pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.__name__)
INPUTS = pytest.mark.parametrize(
    ("kind", "positions"),
    [
        (MaskedBatchNorm1d, (6,)),
        (MaskedBatchNorm1d, (4, 7)),
        (MaskedBatchNorm2d, (3, 5, 4)),
        (MaskedBatchNorm3d, (2, 3, 2, 4)),
    ],
    ids=["1d", "1d with length", "2d", "3d"],
)
ONE_GRAPH = since("2.13", "breaks the graph where a shape depends on values")
GARBAGE = pytest.mark.parametrize("garbage", [0.0, 1e6, float("nan"), float("inf")])


def ragged(positions, *, garbage=1e6, dtype=torch.float32):
    """Return a padded mini-batch (N, C, ...) and its mask: each sample ends somewhere else."""
    real = torch.zeros(positions, dtype=torch.bool)
    for n, row in enumerate(real.flatten(1) if real.dim() > 1 else real[:, None]):
        row[: max(1, len(row) - 2 * n) if real.dim() > 1 else n % 3] = True
    x = (torch.randn(positions[0], 3, *positions[1:]) * 3 + 1).to(dtype)
    return x.masked_fill(~real[:, None], garbage), real


def rows(x, real):
    """Return the real values alone, one row a position: (M, C), sample by sample."""
    return torch.stack(
        [x[n, :, *where] for n, *where in real.nonzero().tolist()]  # position by position
    )


def pair(kind, **options):
    """Return our layer, and torch's for rows, with the same parameters that are not 1 and 0."""
    plain = {name: value for name, value in options.items() if name not in ("activation", "guard")}
    ours, theirs = kind(3, **options), torchs(nn.BatchNorm1d, 3, **plain)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(other.copy_(torch.randn(3)))
    return ours, theirs


def assert_same_state(ours, theirs, *, same=None):
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    for key, value in mine.items():
        if same:
            assert same(value, other[key]), key
        else:
            torch.testing.assert_close(value, other[key])


# What is computed


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None, "bias": False}], ids=str
)
@GARBAGE
@INPUTS
def test_a_life_is_that_of_torch_on_the_unpadded_rows(kind, positions, garbage, options):
    ours, theirs = pair(kind, **options)
    for training in (True, True, False, True):
        x, real = ragged(positions, garbage=garbage)
        x.requires_grad_()
        y, expected = (
            ours.train(training)(x, mask=real),
            theirs.train(training)(rows(x, real)),
        )
        torch.testing.assert_close(rows(y, real), expected)
        cotangent = torch.randn_like(x)
        gradients = torch.autograd.grad(y, [x, *ours.parameters()], cotangent)
        expected = torch.autograd.grad(expected, [x, *theirs.parameters()], rows(cotangent, real))
        torch.testing.assert_close(gradients, expected)
        assert_same_state(ours, theirs)


@INPUTS
def test_in_training_it_is_torchs_to_the_last_bit(kind, positions):
    ours, theirs = pair(kind)
    x, real = ragged(positions)
    assert equal(rows(ours(x, mask=real), real), theirs(rows(x, real)))
    assert_same_state(ours, theirs, same=equal)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("training", [True, False])
@GARBAGE
def test_padding_of_the_output_is_zero_also_after_the_activation(training, activation, garbage):
    layer = MaskedBatchNorm1d(3, activation=activation).train(training)
    with torch.no_grad():
        layer.bias.fill_(1.0)
    x, real = ragged((4, 7), garbage=garbage)
    for residual in (None, x):
        y = layer(x, residual, mask=real)
        padding = ~real[:, None].expand_as(y)
        assert y[padding].count_nonzero() == 0
        assert y[~padding].isfinite().all()


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("training", [True, False])
@GARBAGE
def test_residuals_follow_and_no_gradient_reaches_padding(training, activation, garbage):
    ours, theirs = pair(MaskedBatchNorm1d, activation=activation)
    x, real = ragged((4, 7), garbage=garbage)
    residual = ragged((4, 7), garbage=garbage)[0].requires_grad_()
    y = ours.train(training)(x.requires_grad_(), residual, mask=real)
    expected = theirs.train(training)(rows(x, real)) + rows(residual, real)
    expected = ACTIVATIONS[activation].function(expected)
    torch.testing.assert_close(rows(y, real), expected)
    cotangent = torch.randn_like(x)
    found = torch.autograd.grad(y, [x, residual, ours.weight], cotangent)
    torch.testing.assert_close(
        found,
        torch.autograd.grad(expected, [x, residual, theirs.weight], rows(cotangent, real)),
    )
    assert found[0][~real[:, None].expand_as(x)].count_nonzero() == 0


@INPUTS
def test_a_mask_without_padding_is_torchs_layer_to_the_last_bit(kind, positions):
    ours, theirs = kind(3), PAIRS[kind](3)
    x, real = torch.randn(positions[0], 3, *positions[1:]), torch.ones(positions, dtype=torch.bool)
    for training in (True, False):
        y, expected = ours.train(training)(x, mask=real), theirs.train(training)(x)
        assert equal(y, expected)
    assert_same_state(ours, theirs, same=equal)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_output_lies_in_memory_as_the_input(memory_format, training):
    x, real = ragged((3, 5, 4))
    x = x.contiguous(memory_format=memory_format)
    y = MaskedBatchNorm2d(3).train(training)(x, mask=real)
    assert y.stride() == x.stride()


def test_gradients_of_gradients_are_right():
    layer = MaskedBatchNorm1d(3, dtype=torch.float64)
    x, real = ragged((3, 4), dtype=torch.float64)
    x = torch.randn_like(x).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: layer(x, mask=real), (x,))


def test_a_layer_without_running_statistics_needs_the_mask_in_eval_mode_too():
    ours, theirs = pair(MaskedBatchNorm1d, track_running_stats=False)
    x, real = ragged((4, 7))
    y = ours.eval()(x, mask=real)
    torch.testing.assert_close(rows(y, real), theirs.eval()(rows(x, real)))
    with pytest.raises(ValueError, match=r"MaskedBatchNorm1d\(3\) got no mask"):
        ours(x)


def test_others_may_let_it_normalise_by_the_mini_batch_in_eval_mode():
    ours, theirs = pair(MaskedBatchNorm1d)
    x, real = ragged((4, 7))
    with normalising_by_batch_statistics(ours):
        y = ours(x, mask=real)
    torch.testing.assert_close(rows(y, real), theirs(rows(x, real)))
    assert ours.num_batches_tracked.item() == 0


# Without a mask


@KINDS
def test_training_without_a_mask_is_refused(kind):
    layer, x = kind(3), torch.randn(4, 3, *[2] * (2 if kind is MaskedBatchNorm2d else 3))
    x = x[..., 0, 0] if kind is MaskedBatchNorm1d else x
    with pytest.raises(
        ValueError, match=rf"{kind.__name__}\(3\) got no mask, so padding would enter its stat"
    ):
        layer(x)
    assert layer.num_batches_tracked.item() == 0


@INPUTS
def test_by_default_all_values_are_real_where_that_was_asked_for(kind, positions):
    ours, theirs = kind(3, default="all"), PAIRS[kind](3)
    x = torch.randn(positions[0], 3, *positions[1:])
    for training in (True, False):
        assert equal(ours.train(training)(x), theirs.train(training)(x))
    assert_same_state(ours, theirs, same=equal)


@INPUTS
def test_eval_mode_needs_no_mask(kind, positions):
    x = torch.randn(positions[0], 3, *positions[1:])
    assert torch.equal(kind(3).eval()(x), PAIRS[kind](3).eval()(x))


def test_an_unknown_default_is_refused():
    with pytest.raises(ValueError, match=r"`default` is 'none': choose \"all\""):
        MaskedBatchNorm1d(3, default="none")


# Masks that are none


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (torch.ones(4, 7), "torch.float32"),
        (torch.ones(4, 7).long(), "torch.int64"),
        ([[True]], "list"),
    ],
)
def test_a_mask_of_another_type_is_refused(values, kind):
    message = rf"`mask` is {kind}: pass a torch.bool tensor in which True marks a real value"
    with pytest.raises(TypeError, match=message):
        MaskedBatchNorm1d(3)(torch.randn(4, 3, 7), mask=values)
    with pytest.raises(TypeError, match=message), mask(values):
        pass
    assert current_mask() is None


def test_a_mask_without_axes_is_refused():
    with pytest.raises(ValueError, match=r"`mask` has no axes"), mask(torch.tensor(True)):
        pass


@pytest.mark.parametrize("shape", [(4,), (4, 6), (3, 7), (4, 1, 7), (4, 3, 7), (7, 4)], ids=str)
def test_a_mask_of_another_shape_is_refused_where_it_is_an_argument(shape):
    layer = MaskedBatchNorm1d(3)
    with pytest.raises(ValueError, match=r"and `input` \(4, 3, 7\): pass one value .*, \(4, 7\)"):
        layer(torch.randn(4, 3, 7), mask=torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("number", [0, 1])
def test_a_mask_with_too_few_real_values_is_refused_in_training(number):
    layer, real = MaskedBatchNorm1d(3), torch.zeros(4, 7, dtype=torch.bool)
    real[2, :number] = True
    with pytest.raises(
        ValueError,
        match=rf"of shape \(4, 7\) at MaskedBatchNorm1d\(3\), marks {number} real values",
    ):
        layer(torch.randn(4, 3, 7), mask=real)
    assert layer.num_batches_tracked.item() == 0
    # Eval mode takes no statistics, and there a sample that is all padding is no fault.
    assert layer.eval()(torch.randn(4, 3, 7), mask=real).count_nonzero() == 3 * number


def test_a_mini_batch_that_is_not_finite_stays_out_of_the_running_statistics():
    layer = MaskedBatchNorm1d(3)
    x, real = ragged((4, 7))
    x[0, 0, 0] = float("nan")  # a real value
    assert layer(x, mask=real)[:, 0][real].isnan().all()
    assert layer.num_batches_tracked.item() == 0
    assert layer.non_finite_batches.item() == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 3, 6), (1, 3, 1)], ids=str)
def test_a_residual_of_another_shape_is_refused(shape, training):
    x, real = ragged((4, 7))
    with pytest.raises(ValueError, match=r"`residual` has shape .* and `input` \(4, 3, 7\)"):
        MaskedBatchNorm1d(3).train(training)(x, torch.ones(shape), mask=real)


# A block


class Network(nn.Module):
    """Its forward knows of no mask; each layer sees other positions."""

    def __init__(self):
        super().__init__()
        self.first = MaskedBatchNorm1d(3)
        self.conv = nn.Conv1d(3, 3, 3, stride=2, padding=1)
        self.second = MaskedBatchNorm1d(3)
        self.dense = nn.Linear(3, 3)
        self.third = MaskedBatchNorm1d(3)

    def forward(self, x):
        return self.tail(self.second(self.conv(self.first(x))))

    def tail(self, x):
        return self.third(self.dense(x.mean(2)))


def test_a_block_gives_the_mask_to_every_layer_of_a_model_resized():
    model, x = Network(), torch.randn(4, 3, 8)
    real = torch.arange(8) < torch.tensor([8, 5, 2, 0])[:, None]
    told = copy.deepcopy(model)
    with mask(real):
        y = model(x)
    # Of 8 positions each second is kept, in this order; sample 3 is all padding.
    half = told.second(told.conv(told.first(x, mask=real)), mask=real[:, ::2])
    expected = told.third(told.dense(half.mean(2)), mask=torch.tensor([True, True, True, False]))
    assert torch.equal(y, expected)
    assert_same_state(model, told, same=torch.equal)


@pytest.mark.parametrize(
    ("old", "new"), [((7,), (4,)), ((4,), (7,)), ((5, 6), (3, 12)), ((2, 3, 4), (4, 3, 1))], ids=str
)
def test_masks_are_resized_by_nearest_neighbour(old, new):
    real = torch.rand(3, *old) > 0.5
    expected = real
    for axis, length in enumerate(new, start=1):
        kept = [i * real.shape[axis] // length for i in range(length)]
        expected = torch.stack([expected.select(axis, i) for i in kept], axis)
    assert torch.equal(fit(real, torch.Size([3, *new])), expected)


def test_resizing_is_exact_where_float32_rounds_to_the_neighbour():
    # torch's interpolate is off by one in 1,694 of the 89,401 pairs of lengths below 300.
    for old in range(1, 100, 7):
        for new in range(1, 100, 3):
            index = fit(torch.eye(old, dtype=torch.bool), torch.Size([old, new]))
            assert index.nonzero()[:, 1].bincount(minlength=new).tolist() == [1] * new
            kept = index.long().argmax(0).tolist()
            assert kept == [i * old // new for i in range(new)]


def test_the_first_position_of_sequences_padded_at_their_end_survives_any_length():
    real = torch.arange(64) < torch.tensor([1, 64])[:, None]
    for length in range(1, 64):
        assert fit(real, torch.Size([2, length]))[0].tolist() == [True] + [False] * (length - 1)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 4)], ids=str)
def test_rows_of_all_positions_take_the_mask_flattened(shape):
    # As a dense layer with a batch norm of its own sees a sequence.
    real = torch.rand(shape) > 0.5
    assert torch.equal(fit(real, torch.Size([real.numel()])), real.flatten())


def test_a_dense_layer_that_owns_one_takes_the_mask_position_by_position():
    layer, x = nn.Linear(3, 5), torch.randn(4, 7, 3)
    real = torch.arange(7) < torch.tensor([7, 5, 2, 0])[:, None]
    layout = Layout("fc", features=5, axis=-1, rank=None)
    expected = nn.BatchNorm1d(5)(layer(x)[real])
    own_batch_norm(layer, layout, place=NormalizedOutput, momentum=0.1, eps=1e-5)
    layer.batchnorm = MaskedBatchNorm1d(5)
    with mask(real):
        y = layer(x)
    assert equal(y[real], expected)
    assert y[~real].count_nonzero() == 0


def test_an_image_as_a_sequence_takes_the_mask_flattened():
    real = torch.rand(2, 3, 4) > 0.5
    assert torch.equal(fit(real, torch.Size([2, 12])), real.flatten(1))


@pytest.mark.parametrize(
    ("shape", "positions"),
    [((4, 7), (3, 7)), ((4, 7), (4, 7, 7)), ((4, 2, 3), (4, 7)), ((4,), (4, 7)), ((4, 7), (5,))],
    ids=str,
)
def test_a_mask_that_fits_no_way_is_refused_with_the_layer(shape, positions):
    layer = {1: MaskedBatchNorm1d, 2: MaskedBatchNorm1d, 3: MaskedBatchNorm2d}[len(positions)](3)
    x = torch.randn(positions[0], 3, *positions[1:])
    with (
        mask(torch.ones(shape, dtype=torch.bool)),
        pytest.raises(ValueError, match="does not fit") as refusal,
    ):
        layer(x)
    text = str(refusal.value)
    assert text.startswith(f"the mask of shape {shape} does not fit {type(layer).__name__}(3)")
    assert f"input has shape {tuple(x.shape)}" in text
    assert f"`mask` of shape {positions}" in text


def test_blocks_nest_and_an_argument_goes_before_them():
    layer = MaskedBatchNorm1d(3).eval()
    x = torch.ones(1, 3, 4)
    masks = [torch.arange(4)[None] < n for n in (1, 2, 3)]

    def real_values(**argument):
        return layer(x, **argument)[0, 0].count_nonzero().item()

    def fail():
        assert real_values() == 2
        assert real_values(mask=masks[2]) == 3
        raise ZeroDivisionError

    with mask(masks[0]):
        with pytest.raises(ZeroDivisionError), mask(masks[1]):
            fail()
        assert real_values() == 1
    assert real_values() == 4


def test_masks_of_many_threads_come_and_go_without_a_trace():
    wrong = []

    def run(length):
        real = torch.ones(length, dtype=torch.bool)
        for _ in range(500):
            with mask(real):
                if current_mask() is not real:
                    wrong.append(length)

    threads = [threading.Thread(target=run, args=(length,)) for length in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert current_mask() is None
    assert not masks._blocks


def test_threads_have_masks_of_their_own():
    seen = {}
    barrier = threading.Barrier(2, timeout=10)

    def run(length):
        with mask(torch.ones(1, length, dtype=torch.bool)):
            barrier.wait()
            seen[length] = current_mask().shape[1]
            barrier.wait()

    threads = [threading.Thread(target=run, args=(length,)) for length in (1, 2)]
    with mask(torch.ones(1, 3, dtype=torch.bool)):
        fresh = threading.Thread(target=lambda: seen.update(fresh=current_mask()))
        for thread in (fresh, *threads):
            thread.start()
        for thread in (fresh, *threads):
            thread.join()
    assert seen == {1: 1, 2: 2, "fresh": None}


def test_tasks_have_masks_of_their_own():
    async def run(length):
        with mask(torch.ones(1, length, dtype=torch.bool)):
            await asyncio.sleep(0)
            return current_mask().shape[1]

    async def both():
        return await asyncio.gather(run(1), run(2))

    assert asyncio.run(both()) == [1, 2]
    assert current_mask() is None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_counts_a_mini_batch_once(use_reentrant):
    layer, plain = MaskedBatchNorm1d(3), MaskedBatchNorm1d(3)
    x, real = ragged((4, 7))
    x.requires_grad_()
    expected = torch.autograd.grad(plain(x, mask=real).pow(3).sum(), x)[0]

    def run(x, real):
        with mask(real):
            return layer(x)

    checkpoint(run, x, real, use_reentrant=use_reentrant).pow(3).sum().backward()
    torch.testing.assert_close(x.grad, expected)
    assert_same_state(layer, plain, same=torch.equal)


@pytest.mark.parametrize("default", [None, "all"])
def test_a_recomputed_forward_that_lost_its_block_is_refused(default):
    layer = MaskedBatchNorm1d(3, default=default)
    x, real = ragged((4, 7))
    with mask(real):
        y = checkpoint(layer, x.requires_grad_(), use_reentrant=False)
    with pytest.raises(ValueError, match=r"outside the block `with mask\(...\)` of its first run"):
        y.sum().backward()


def test_a_recomputed_forward_that_had_no_mask_needs_none():
    layer, x = MaskedBatchNorm1d(3, default="all"), torch.randn(4, 3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert layer.num_batches_tracked.item() == 1


# What others do with layers


@KINDS
def test_layers_and_their_state_are_those_of_torch_to_others(kind):
    layer, theirs = kind(3, default="all"), PAIRS[kind](3)
    assert isinstance(layer, PAIRS[kind])
    theirs.load_state_dict(layer.state_dict())
    layer.load_state_dict(theirs.state_dict())
    assert repr(kind(3)) == f"Masked{theirs!r}"
    assert repr(layer) == f"Masked{repr(theirs)[:-1]}, default='all')"


def duplicate_by_file(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), duplicate_by_file],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_made_in_a_block_do_the_same(duplicate):
    layer = MaskedBatchNorm1d(3)
    x, real = ragged((4, 7))
    with mask(real):
        other = duplicate(layer)
        assert torch.equal(other(x), layer(x))
    assert_same_state(other, layer, same=torch.equal)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_keep_float32_state(dtype, training):
    ours, theirs = pair(MaskedBatchNorm1d)
    x, real = ragged((4, 7), dtype=dtype, garbage=0.0)
    y = ours.train(training)(x, x, mask=real)
    assert y.dtype == dtype
    expected = theirs.train(training)(rows(x, real)) + rows(x, real)
    assert equal(rows(y, real), expected)  # rounded once, by torch twice
    assert_same_state(ours, theirs)


def test_autocast_leaves_it_as_it_is():
    model = nn.Sequential(nn.Conv1d(3, 3, 1), MaskedBatchNorm1d(3))
    x, real = ragged((4, 7), garbage=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16), mask(real):
        y = model(x)
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert model[1].running_mean.dtype == torch.float32


@ONE_GRAPH
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_layers_compile_as_one_graph_without_a_mask_and_with_it_as_an_argument(backend):
    torch.compiler.reset()
    layer = MaskedBatchNorm1d(3, activation="relu", default="all")
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for training in (False, True):
        layer.train(training)
        eager.train(training)
        x, real = ragged((4, 7))
        torch.testing.assert_close(compiled(x), eager(x))
        for given in (real, ~real, real | True):
            leaves = [x.clone().requires_grad_() for _ in range(2)]
            y, expected = compiled(leaves[0], x, mask=given), eager(leaves[1], x, mask=given)
            torch.testing.assert_close(y, expected)
            gradients = [
                torch.autograd.grad(z.sum(), p)[0]
                for z, p in zip((y, expected), leaves, strict=True)
            ]
            torch.testing.assert_close(*gradients)
        assert_same_state(layer, eager)


@ONE_GRAPH
def test_a_compiled_layer_refuses_a_mask_with_too_few_real_values():
    torch.compiler.reset()
    compiled = torch.compile(MaskedBatchNorm1d(3), fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match=r"u0 >= 2"):
        compiled(torch.randn(4, 3, 7), mask=torch.zeros(4, 7, dtype=torch.bool))


@pytest.mark.parametrize("training", [True, False])
def test_compiled_models_see_the_mask_of_each_block(training):
    torch.compiler.reset()
    ours, eager = (
        nn.Sequential(nn.Identity(), MaskedBatchNorm1d(3, default="all")) for _ in range(2)
    )
    compiled = torch.compile(ours.train(training), backend="eager")
    eager.train(training)
    x, real = ragged((4, 7))
    torch.testing.assert_close(compiled(x), eager(x))
    for given in (real, real.flip(0), ~real):
        with mask(given):
            torch.testing.assert_close(compiled(x), eager(x))
    torch.testing.assert_close(compiled(x), eager(x))
    assert_same_state(ours, eager)
