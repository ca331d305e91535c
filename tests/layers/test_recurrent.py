import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_sequence
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from bnkit.layers.per_step import PerStepBatchNorm1d
from bnkit.layers.recurrent import BatchNormLSTM, BatchNormLSTMCell
from bnkit.observation import normalising_by_batch_statistics
from cases import since

D, H, L, N = 3, 4, 6, 5
LENGTHS = [4, 6, 1, 6, 3]  # unsorted, and the longest two are as long: every step has a variance
FORMS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3},
        {"bias": False},
        {"batch_first": True},
        {"bidirectional": True},
        {"bidirectional": True, "num_layers": 2, "batch_first": True},
        {"proj_size": 2, "num_layers": 2, "bidirectional": True},
        {"dtype": torch.float64},
    ],
    ids=str,
)
FAR = {"rtol": 1e-10, "atol": 1e-10}


def norms(layer):
    return [m for m in layer.modules() if isinstance(m, PerStepBatchNorm1d)]


def lived_in(*, seed=0, kind=BatchNormLSTM, max_steps=L, **options):
    """Return a layer whose parameters and statistics are nowhere those of a new one."""
    torch.manual_seed(seed)
    layer = kind(D, H, max_steps=max_steps, **options)
    with torch.no_grad():
        for norm in norms(layer):
            for values in norm.parameters():
                values.uniform_(0.3, 1.2)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.num_batches_tracked.fill_(7)
    return layer


def identities(layer):
    """Make every batch norm of the layer compute x in eval mode."""
    for norm in norms(layer):
        nn.init.ones_(norm.weight)
        norm.reset_running_stats()
        norm.eps = 0.0
        norm.eval()
    return layer


def sequences(lengths=LENGTHS, dtype=torch.float64, *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, D, generator=generator, dtype=dtype) for n in lengths]


def states(layer, n=N, dtype=torch.float64):
    cells = layer.num_layers * (2 if layer.bidirectional else 1)
    shape_h = (cells, n, layer.proj_size or H)
    return torch.randn(shape_h, dtype=dtype), torch.randn(cells, n, H, dtype=dtype)


def by_the_paper(layer, inputs, h, c, end="_l0"):
    """Return one direction's h of each sequence, last h and c, and (mean, variance) of each step.

    Equations 5 to 8 of the paper, one step and one sequence at a time.
    """
    weight_ih, weight_hh = getattr(layer, f"weight_ih{end}"), getattr(layer, f"weight_hh{end}")
    b = getattr(layer, f"bias_ih{end}") + getattr(layer, f"bias_hh{end}")
    gammas = [getattr(layer, f"batchnorm_{part}{end}").weight for part in ("ih", "hh", "c")]
    beta = getattr(layer, f"batchnorm_c{end}").bias
    h, c = list(h), list(c)
    outputs, statistics = [[] for _ in inputs], []

    def normalised(rows, gamma, seen):
        rows = torch.stack(rows)
        seen.append((rows.mean(0), rows.var(0)))
        deviations = rows - rows.mean(0)
        return gamma * deviations / (deviations.square().mean(0) + 1e-5).sqrt()

    for t in range(max(map(len, inputs))):
        there = [n for n, x in enumerate(inputs) if t < len(x)]
        seen = []
        of_x = normalised([weight_ih @ inputs[n][t] for n in there], gammas[0], seen)
        of_h = normalised([weight_hh @ h[n] for n in there], gammas[1], seen)
        o = {}
        for n, gates in zip(there, of_x + of_h + b, strict=True):
            i, f, g, o[n] = gates.split(H)
            c[n] = torch.sigmoid(f) * c[n] + torch.sigmoid(i) * torch.tanh(g)
        of_c = normalised([c[n] for n in there], gammas[2], seen) + beta
        for n, row in zip(there, of_c, strict=True):
            h[n] = torch.sigmoid(o[n]) * torch.tanh(row)
            outputs[n].append(h[n])
        statistics.append(seen)
    return [torch.stack(out) for out in outputs], (torch.stack(h), torch.stack(c)), statistics


@pytest.mark.parametrize("lengths", [[L] * N, LENGTHS], ids=["equal lengths", "packed"])
def test_training_is_the_papers_formula_with_its_gradients_and_statistics(lengths):
    layer = lived_in(dtype=torch.float64)
    before = copy.deepcopy(layer)
    inputs, hx = sequences(lengths), states(layer)
    output, (h, c) = layer(pack_sequence(inputs, enforce_sorted=False), hx)
    expected, last, statistics = by_the_paper(layer, inputs, hx[0][0], hx[1][0])

    for mine, theirs in zip(nn.utils.rnn.unpack_sequence(output), expected, strict=True):
        torch.testing.assert_close(mine, theirs, **FAR)
    torch.testing.assert_close((h[0], c[0]), last, **FAR)

    parameters = list(layer.parameters())
    mine = torch.autograd.grad(output.data.square().sum() + (h * c).sum(), parameters)
    loss = sum(y.square().sum() for y in expected) + (last[0] * last[1]).sum()
    torch.testing.assert_close(mine, torch.autograd.grad(loss, parameters), **FAR)

    for place, (norm, old) in enumerate(zip(norms(layer), norms(before), strict=True)):
        mean = torch.stack([seen[place][0] for seen in statistics])
        variance = torch.stack([seen[place][1] for seen in statistics])
        new_mean, new_var = old.running_mean.lerp(mean, 0.1), old.running_var.lerp(variance, 0.1)
        torch.testing.assert_close(norm.running_mean, new_mean.detach(), **FAR)
        torch.testing.assert_close(norm.running_var, new_var.detach(), **FAR)
        assert norm.num_batches_tracked.tolist() == [8] * L


@pytest.mark.parametrize("lengths", [[L] * N, LENGTHS], ids=["equal lengths", "packed"])
def test_backwards_each_sequence_starts_at_its_own_last_step(lengths):
    layer = lived_in(dtype=torch.float64, bidirectional=True)
    inputs, hx = sequences(lengths), states(layer)
    output, (h, _) = layer(pack_sequence(inputs, enforce_sorted=False), hx)
    backwards = [x.flip(0) for x in inputs]
    expected, last, _ = by_the_paper(layer, backwards, hx[0][1], hx[1][1], "_l0_reverse")
    for mine, theirs in zip(nn.utils.rnn.unpack_sequence(output), expected, strict=True):
        torch.testing.assert_close(mine[:, H:], theirs.flip(0), **FAR)
    torch.testing.assert_close(h[1], last[0], **FAR)


def test_a_second_layer_reads_the_first():
    layer = lived_in(dtype=torch.float64, num_layers=2)
    inputs, hx = sequences(), states(layer)
    output, (_, c) = layer(pack_sequence(inputs, enforce_sorted=False), hx)
    first, _, _ = by_the_paper(layer, inputs, hx[0][0], hx[1][0])
    second, last, _ = by_the_paper(layer, first, hx[0][1], hx[1][1], "_l1")
    for mine, theirs in zip(nn.utils.rnn.unpack_sequence(output), second, strict=True):
        torch.testing.assert_close(mine, theirs, **FAR)
    torch.testing.assert_close(c[1], last[1], **FAR)


def pair(**options):
    """Return our layer with batch norms that compute x, and torch's with the same weights."""
    theirs = nn.LSTM(D, H, **options)
    ours = BatchNormLSTM(D, H, max_steps=L, **options)
    missing = ours.load_state_dict(theirs.state_dict(), strict=False).missing_keys
    assert all(key.startswith("batchnorm_") for key in missing)
    return identities(ours), theirs


# torch says that its own layer is slow.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("given", [False, True], ids=["zero state", "given state"])
@FORMS
def test_with_identities_for_batch_norms_it_is_torchs_lstm(options, given):
    ours, theirs = pair(**options)
    dtype = options.get("dtype", torch.float32)
    x = torch.randn(N, L, D, dtype=dtype)
    hx = states(ours, dtype=dtype) if given else None
    one = None if hx is None else (hx[0][:, 0], hx[1][:, 0])
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    ordered = pack_padded_sequence(x, sorted(LENGTHS)[::-1], batch_first=True)
    for arguments in ((x if ours.batch_first else x.transpose(0, 1), hx), (x[0], one)):
        torch.testing.assert_close(ours(*arguments), theirs(*arguments))
    for batch in (packed, ordered):
        torch.testing.assert_close(ours(batch, hx), theirs(batch, hx))


def test_dropout_between_layers_is_torchs():
    # The batch norms alone are in eval mode, as where somebody freezes them.
    ours, theirs = pair(num_layers=3, dropout=0.5, bidirectional=True)
    x = torch.randn(L, N, D)
    torch.manual_seed(3)
    mine = ours(x)
    torch.manual_seed(3)
    torch.testing.assert_close(mine, theirs(x))
    assert not torch.equal(ours(x)[0], mine[0])
    assert torch.equal(ours.eval()(x)[0], ours(x)[0])


@FORMS
def test_a_packed_batch_is_each_of_its_sequences_alone_in_eval_mode(options):
    layer = lived_in(**{**options, "dtype": torch.float64}).eval()
    inputs, hx = sequences(), states(layer)
    output, (h, c) = layer(pack_sequence(inputs, enforce_sorted=False), hx)
    for n, y in enumerate(nn.utils.rnn.unpack_sequence(output)):
        alone, (h_n, c_n) = layer(inputs[n], (hx[0][:, n], hx[1][:, n]))
        torch.testing.assert_close((y, h[:, n], c[:, n]), (alone, h_n, c_n), **FAR)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@FORMS
def test_padding_is_never_read_and_gives_zeros(options, training):
    layer = lived_in(**{**options, "dtype": torch.float64}).train(training)
    other = copy.deepcopy(layer)
    inputs, hx = sequences(), states(layer)
    nan = float("nan")
    padded = pad_sequence(inputs, batch_first=layer.batch_first, padding_value=nan)
    output, last = layer(padded, hx, lengths=torch.tensor(LENGTHS))
    expected, expected_last = other(pack_sequence(inputs, enforce_sorted=False), hx)
    unpacked = nn.utils.rnn.unpack_sequence(expected)
    torch.testing.assert_close(output, pad_sequence(unpacked, batch_first=layer.batch_first))
    assert torch.equal(last[0], expected_last[0])
    assert torch.equal(last[1], expected_last[1])
    for mine, theirs in zip(layer.buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_padded_output_is_as_long_as_the_input():
    layer = lived_in()
    output, _ = layer(torch.randn(L + 2, 3, D), lengths=[2, 1, 2])
    assert output.shape == (L + 2, 3, H)
    assert output[2:].abs().max() == 0


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("bias", [True, False])
def test_cells_step_by_step_are_the_layer(training, bias):
    layer = lived_in(bias=bias, dtype=torch.float64, momentum=None).train(training)
    cell = BatchNormLSTMCell(D, H, bias, dtype=torch.float64, max_steps=L, momentum=None)
    cell.load_state_dict({k.replace("_l0", ""): v for k, v in layer.state_dict().items()})
    cell.train(training)
    x = torch.randn(L + 2, N, D, dtype=torch.float64)  # two steps more than there are statistics
    expected, last = layer(x)
    state = None
    for step, values in enumerate(x):
        state = cell(values, state, step=step)
        torch.testing.assert_close(state[0], expected[step], **FAR)
    torch.testing.assert_close(state[1], last[1][0], **FAR)
    for mine, theirs in zip(cell.buffers(), layer.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, **FAR)


def test_a_cell_with_identities_for_batch_norms_is_torchs_cell():
    theirs, ours = nn.LSTMCell(D, H), BatchNormLSTMCell(D, H, max_steps=2)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    identities(ours)
    x, hx = torch.randn(N, D), (torch.randn(N, H), torch.randn(N, H))
    torch.testing.assert_close(ours(x, step=0), theirs(x))
    torch.testing.assert_close(ours(x, hx, step=1), theirs(x, hx))
    one = hx[0][0], hx[1][0]
    torch.testing.assert_close(ours(x[0], one, step=5), theirs(x[0], one))


def test_each_step_has_statistics_of_its_own():
    layer = BatchNormLSTM(D, H, max_steps=3, momentum=1.0)
    x = torch.randn(3, 50, D) + torch.tensor([0.0, 10.0, -10.0])[:, None, None]
    layer(x)
    products = x @ layer.weight_ih_l0.T
    torch.testing.assert_close(layer.batchnorm_ih_l0.running_mean, products.mean(1).detach())


def test_steps_beyond_max_steps_use_the_statistics_of_the_last():
    layer = lived_in(max_steps=2).eval()
    longer = lived_in(max_steps=5).eval()
    longer.load_state_dict(layer.state_dict() | {
        name: torch.cat([values, values[-1:].repeat(3, *[1] * (values.dim() - 1))])
        for name, values in layer.state_dict().items()
        if "running" in name or "tracked" in name
    })  # fmt: skip
    x = torch.randn(5, N, D)
    torch.testing.assert_close(layer(x), longer(x))


def test_steps_beyond_the_longest_sequence_trained_on_use_the_statistics_of_its_last():
    layer, exact = BatchNormLSTM(D, H, max_steps=9), BatchNormLSTM(D, H, max_steps=2)
    exact.load_state_dict({
        name: values[:2] if "running" in name or "tracked" in name else values
        for name, values in layer.state_dict().items()
    })  # fmt: skip
    x = torch.randn(2, 8, D) + 3
    layer(x)
    exact(x)
    longer = torch.randn(12, N, D)
    torch.testing.assert_close(layer.eval()(longer), exact.eval()(longer))


def test_steps_beyond_max_steps_are_not_tracked():
    layer, longer = lived_in(max_steps=2), lived_in(max_steps=2)
    x = torch.randn(5, N, D)
    layer(x[:2])
    longer(x)
    for mine, theirs in zip(layer.buffers(), longer.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_step_that_one_sequence_alone_reaches_uses_running_statistics_and_keeps_them():
    layer = lived_in(dtype=torch.float64)
    before = copy.deepcopy(layer)
    inputs = sequences([3, 5, 2])
    output, (h, c) = layer(pack_sequence(inputs, enforce_sorted=False))
    # Step by step: together as far as two go, then the longest alone in eval mode.
    cut = pack_sequence([x[:3] for x in inputs], enforce_sorted=False)
    shared, (h_3, c_3) = before(cut)
    cell = BatchNormLSTMCell(D, H, dtype=torch.float64, max_steps=L)
    cell.load_state_dict({k.replace("_l0", ""): v for k, v in before.state_dict().items()})
    cell.eval()
    state = h_3[0, 1], c_3[0, 1]
    for step in (3, 4):
        state = cell(inputs[1][step], state, step=step)
    torch.testing.assert_close((h[0, 1], c[0, 1]), state, **FAR)
    outputs, shared = (nn.utils.rnn.unpack_sequence(packed) for packed in (output, shared))
    for whole, part in zip(outputs, shared, strict=True):
        torch.testing.assert_close(whole[:3], part, **FAR)
    for mine, theirs in zip(layer.buffers(), before.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, **FAR)
    assert norms(layer)[0].num_batches_tracked.tolist() == [8, 8, 8, 7, 7, 7]


def test_without_momentum_each_step_averages_the_batches_that_reached_it():
    layer = BatchNormLSTM(D, H, max_steps=3, momentum=None)
    batches = [torch.randn(length, 8, D) for length in (3, 1, 2)]
    for x in batches:
        layer(x)
    norm = layer.batchnorm_ih_l0
    assert norm.num_batches_tracked.tolist() == [3, 2, 1]
    for step in range(3):
        means = [(x[step] @ layer.weight_ih_l0.T).mean(0) for x in batches if step < len(x)]
        torch.testing.assert_close(norm.running_mean[step], torch.stack(means).mean(0).detach())


def test_torchs_update_bn_recalculates_the_statistics():
    layer, x = lived_in(), torch.randn(L, N, D)
    torch.optim.swa_utils.update_bn([x, x], layer)
    fresh = BatchNormLSTM(D, H, max_steps=L, momentum=1.0)
    fresh.load_state_dict(layer.state_dict())
    fresh(x)
    for mine, theirs in zip(norms(layer), norms(fresh), strict=True):
        torch.testing.assert_close(mine.running_mean, theirs.running_mean)
        torch.testing.assert_close(mine.running_var, theirs.running_var)
        assert mine.num_batches_tracked.tolist() == [2] * L


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_mini_batch_that_is_not_finite_stays_out_of_the_statistics(value):
    layer = lived_in()
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(L, N, D)
    x[2, 1, 0] = value
    output, _ = layer(x)
    assert output[:2].isfinite().all()
    assert output[2:].isnan().any()
    for name, values in before.items():
        assert torch.equal(layer.state_dict()[name], values), name
    assert [norm.non_finite_batches.item() for norm in norms(layer)] == [1, 1, 1]
    assert not any("non_finite" in name for name in before)
    layer(torch.randn(L, N, D))
    assert norms(layer)[2].num_batches_tracked.tolist() == [8] * L


def test_without_the_guard_it_enters_as_in_torch():
    layer = lived_in(guard=False)
    x = torch.randn(L, N, D)
    x[2, 1, 0] = float("nan")
    layer(x)
    norm = layer.batchnorm_ih_l0
    assert norm.running_mean.isnan().any(1).tolist() == [False, False, True, False, False, False]
    assert norm.num_batches_tracked.tolist() == [8] * L


def test_frozen_batch_norms_train_with_a_single_sequence_and_keep_their_statistics():
    layer = lived_in()
    for norm in norms(layer):
        norm.eval()
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(L, 1, D))[0].sum().backward()
    assert all(torch.equal(values, before[name]) for name, values in layer.state_dict().items())


@pytest.mark.parametrize("lengths", [[L] * N, LENGTHS], ids=["equal lengths", "packed"])
def test_without_running_statistics_each_mini_batch_normalises_itself_in_eval_mode(lengths):
    layer = lived_in()
    before = copy.deepcopy(layer.state_dict())
    batch = packed(*lengths)
    with normalising_by_batch_statistics(layer):
        output, _ = layer(batch)
    assert all(torch.equal(values, before[name]) for name, values in layer.state_dict().items())
    torch.testing.assert_close(output.data, layer.train()(batch)[0].data)


def test_without_running_statistics_a_step_of_one_sequence_is_refused():
    layer = lived_in()
    for batch in (packed(3, 3, 5), packed(4)):
        with (
            normalising_by_batch_statistics(layer),
            pytest.raises(ValueError, match=r"training can take no variance: use a larger"),
        ):
            layer(batch)


def test_the_state_is_torchs_and_each_batch_norms():
    layer = BatchNormLSTM(D, H, 2, bidirectional=True, max_steps=L)
    ends = ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert list(layer.state_dict()) == list(nn.LSTM(D, H, 2, bidirectional=True).state_dict()) + [
        f"batchnorm_{part}_{end}.{name}"
        for end in ends
        for part in ("ih", "hh", "c")
        for name in ["weight"]
        + ["bias"] * (part == "c")
        + ["running_mean", "running_var", "num_batches_tracked"]
    ]
    assert layer.batchnorm_hh_l1.running_var.shape == (L, 4 * H)
    assert layer.batchnorm_c_l1.num_batches_tracked.shape == (L,)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(BatchNormLSTM, nn.LSTM), (BatchNormLSTMCell, nn.LSTMCell)]
)
def test_weights_start_as_torchs_and_gamma_at_a_tenth(ours, theirs):
    torch.manual_seed(0)
    layer = ours(D, H, max_steps=L)
    torch.manual_seed(0)
    reference = theirs(D, H)
    for _ in range(2):
        for name, values in reference.state_dict().items():
            assert torch.equal(layer.state_dict()[name], values)
        assert all((norm.weight == 0.1).all() for norm in norms(layer))
        assert norms(layer)[2].bias.tolist() == [0] * H
        torch.manual_seed(1)
        layer.reset_parameters()
        torch.manual_seed(1)
        reference.reset_parameters()


def test_resetting_the_parameters_forgets_the_statistics():
    layer = lived_in()
    layer.reset_parameters()
    for norm in norms(layer):
        assert norm.running_mean.abs().max() == 0
        assert norm.running_var.unique().tolist() == [1]
        assert norm.num_batches_tracked.sum() == 0


def test_the_input_is_multiplied_in_one_product_for_all_steps():
    products = []

    class Products(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.nn.functional.linear:
                products.append(tuple(args[0].shape))
            return function(*args, **(kwargs or {}))

    with Products():
        lived_in()(pack_sequence(sequences(dtype=torch.float32), enforce_sorted=False))
    assert products == [(sum(LENGTHS), D)] + [(n, H) for n in (5, 4, 4, 3, 2, 2)]


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_gradients_and_their_gradients_are_right(training):
    layer = lived_in(dtype=torch.float64, max_steps=2).train(training)
    names = [name for name, _ in layer.named_parameters()]

    def function(x, h, c, *values):
        parameters = dict(zip(names, values, strict=True))
        packed = pack_padded_sequence(x, [3, 3, 2, 1])  # the last three steps' rows: 4, 3, 2
        output, last = torch.func.functional_call(layer, parameters, (packed, (h, c)))
        return output.data, *last

    x = torch.randn(3, 4, D, dtype=torch.float64, requires_grad=True)
    hx = [values.requires_grad_() for values in states(layer, 4)]
    arguments = (x, *hx, *layer.parameters())
    assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_multiplies_in_low_precision_and_keeps_states_in_the_weights(dtype):
    layer = lived_in()
    exact = copy.deepcopy(layer)
    x = torch.randn(L, 20, D)
    with torch.autocast("cpu", dtype):
        output, (h, c) = layer(x.to(dtype))
    assert {output.dtype, h.dtype, c.dtype} == {torch.float32}
    torch.testing.assert_close(output, exact(x)[0], rtol=0.1, atol=0.1)
    output.sum().backward()
    assert layer.weight_hh_l0.grad.dtype == torch.float32
    assert norms(layer)[0].running_var.dtype == torch.float32


def test_a_layer_in_low_precision_works_throughout():
    layer = lived_in(dtype=torch.bfloat16)
    x = torch.randn(L, N, D, dtype=torch.bfloat16)
    output, (h, c) = layer(x)
    assert {output.dtype, h.dtype, c.dtype} == {torch.bfloat16}
    assert layer.double()(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_counts_a_mini_batch_once(use_reentrant):
    layer, plain = lived_in(), lived_in()
    x = torch.randn(L, N, D, requires_grad=True)
    (expected,) = torch.autograd.grad(plain(x)[0].square().sum(), x)
    y = checkpoint(lambda values: layer(values)[0], x, use_reentrant=use_reentrant)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, expected)
    for mine, theirs in zip(layer.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, theirs)


@since("2.13", "does not iterate over a field of a named tuple")
@pytest.mark.parametrize(("training", "backend"), [(True, "aot_eager"), (False, "eager")])
def test_it_compiles_as_one_graph(training, backend):
    torch.compiler.reset()
    layer = lived_in(max_steps=1).train(training)
    plain = copy.deepcopy(layer)
    x = torch.randn(2, N, D)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), plain(x))
    for mine, theirs in zip(layer.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("kind", [BatchNormLSTM, BatchNormLSTMCell])
def test_copies_do_the_same_and_share_nothing(kind, duplicate):
    layer = lived_in(kind=kind)
    other = duplicate(layer)
    options = {"step": 1} if kind is BatchNormLSTMCell else {}
    x = torch.randn(N, D) if options else torch.randn(L, N, D)
    assert torch.equal(other(x, **options)[0], layer(x, **options)[0])
    assert repr(other) == repr(layer)
    layer(x, **options)
    assert not torch.equal(norms(other)[0].running_mean, norms(layer)[0].running_mean)


def test_a_saved_state_dict_loads_with_weights_only():
    layer, file = lived_in(), io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = BatchNormLSTM(D, H, max_steps=L)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(L, N, D)
    assert torch.equal(other.eval()(x)[0], layer.eval()(x)[0])


def test_layers_print_what_they_are():
    assert repr(BatchNormLSTM(3, 4, 2, bidirectional=True, max_steps=9)).startswith(
        "BatchNormLSTM(\n  3, 4, num_layers=2, bidirectional=True, max_steps=9\n"
    )
    assert repr(BatchNormLSTMCell(3, 4, max_steps=9)).startswith(
        "BatchNormLSTMCell(\n  3, 4, max_steps=9\n"
    )
    assert "eps=1e-05, momentum=0.1, affine=True" in repr(PerStepBatchNorm1d(3, max_steps=9))
    assert repr(PerStepBatchNorm1d(3, max_steps=9)).endswith(", max_steps=9)")


def test_an_empty_mini_batch_passes_in_eval_mode():
    output, (h, _) = lived_in().eval()(torch.zeros(L, 0, D))
    assert output.shape == (L, 0, H)
    assert h.shape == (1, 0, H)


def packed(*lengths):
    return pack_sequence(sequences(lengths, torch.float32), enforce_sorted=False)


ALONE = (
    "has {} sequence(s), of which training can take no variance: use a larger mini-batch, drop the "
    "last incomplete one (drop_last=True of a DataLoader), or call .eval() on the layer"
)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda layer: layer(torch.zeros(L, 1, D)),
            ValueError,
            "`input` of shape (6, 1, 3) " + ALONE.format(1),
        ),
        (lambda layer: layer(torch.zeros(L, 0, D)), ValueError, ALONE.format(0)),
        (lambda layer: layer(torch.zeros(L, D)), ValueError, ALONE.format(1)),
        (lambda layer: layer(packed(4)), ValueError, ALONE.format(1)),
        (
            lambda layer: layer(torch.zeros(L, 1, D), lengths=[3]),
            ValueError,
            "`input` of shape (6, 1, 3) " + ALONE.format(1),
        ),
        (
            lambda layer: layer(torch.zeros(0, N, D)),
            RuntimeError,
            "`input` of shape (0, 5, 3) has sequences of length 0: give at least one step",
        ),
        (
            lambda layer: layer(torch.zeros(L, N, D), lengths=[6, 6, 0, 1, 2]),
            ValueError,
            (
                "`lengths` contains 0, and the input has 6 steps: give 1 to 6; leave empty "
                "sequences out of the mini-batch"
            ),
        ),
        (
            lambda layer: layer(torch.zeros(L, N, D), lengths=[6, 6, 7, 1, 2]),
            ValueError,
            "`lengths` contains 7, and the input has 6 steps: give 1 to 6",
        ),
        (
            lambda layer: layer(torch.zeros(L, N, D), lengths=[6, 6]),
            ValueError,
            "`lengths` is torch.int64 of shape (2,): give one integer for each of the 5 sequences",
        ),
        (
            lambda layer: layer(torch.zeros(L, N, D), lengths=torch.ones(N)),
            ValueError,
            "`lengths` is torch.float32 of shape (5,): give one integer for each",
        ),
        (
            lambda layer: layer(torch.zeros(L, D), lengths=[6]),
            ValueError,
            "`lengths` needs a mini-batch, and `input` is (6, 3)",
        ),
        (
            lambda layer: layer(packed(4, 4), lengths=[4, 4]),
            TypeError,
            "`lengths` is given with a PackedSequence, which has its own: omit it",
        ),
        (
            lambda layer: layer(torch.zeros(L, N, D, 2)),
            ValueError,
            (
                "`input` of shape (6, 5, 3, 2) is 4-D: give (L, N, input_size) or, without "
                "mini-batch, (L, input_size)"
            ),
        ),
        (
            lambda layer: layer(torch.zeros(L, N, 7)),
            RuntimeError,
            (
                "`input` of shape (6, 5, 7) has 7 features on its last axis, and input_size is 3: "
                "make them equal"
            ),
        ),
        (
            lambda layer: layer(torch.zeros(L, N, D, dtype=torch.float64)),
            ValueError,
            (
                "`input` is torch.float64 and the weights are torch.float32: convert one of them, "
                "as in input.to(torch.float32)"
            ),
        ),
        (
            lambda layer: layer(torch.zeros(L, N, D), (torch.zeros(1, 4, H), torch.zeros(1, N, H))),
            RuntimeError,
            "`hx` has h of shape (1, 4, 4): this layer and input need (1, 5, 4)",
        ),
        (
            lambda layer: layer(torch.zeros(L, N, D), (torch.zeros(1, N, H), torch.zeros(1, N, 5))),
            RuntimeError,
            "`hx` has c of shape (1, 5, 5): this layer and input need (1, 5, 4)",
        ),
        (
            lambda _: BatchNormLSTM(D, H, max_steps=0),
            ValueError,
            (
                "`max_steps` is 0: pass at least 1, best the length of the longest sequence that "
                "the layer trains on"
            ),
        ),
        (
            lambda _: BatchNormLSTMCell(D, H, max_steps=2.5),
            TypeError,
            "`max_steps` is 2.5: pass an int, the longest sequence's length",
        ),
    ],
)
def test_errors_of_the_layer_say_what_to_do(call, error, text):
    layer = lived_in()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(error, match=re.escape(text)):
        call(layer)
    assert all(torch.equal(values, before[name]) for name, values in layer.state_dict().items())


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda cell: cell(torch.zeros(1, D), step=0),
            ValueError,
            "`input` of shape (1, 3) " + ALONE.format(1),
        ),
        (lambda cell: cell(torch.zeros(D), step=0), ValueError, ALONE.format(1)),
        (
            lambda cell: cell(torch.zeros(N, D), step=-1),
            ValueError,
            "`step` is -1: count the steps of a sequence from 0",
        ),
        (lambda cell: cell(torch.zeros(N, D)), TypeError, "argument: 'step'"),
        (
            lambda cell: cell(torch.zeros(2, N, D), step=0),
            ValueError,
            (
                "`input` of shape (2, 5, 3) is 3-D: give (N, input_size) or, without mini-batch, "
                "(input_size,)"
            ),
        ),
        (
            lambda cell: cell(torch.zeros(N, 7), step=0),
            RuntimeError,
            "`input` of shape (5, 7) has 7 features",
        ),
        (
            lambda cell: cell(torch.zeros(N, D), (torch.zeros(4, H), torch.zeros(N, H)), step=0),
            RuntimeError,
            "`hx` has h of shape (4, 4): this layer and input need (5, 4)",
        ),
    ],
)
def test_errors_of_the_cell_say_what_to_do(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call(lived_in(kind=BatchNormLSTMCell))


def test_the_output_of_a_packed_sequence_is_one():
    x = packed(*LENGTHS)
    output, _ = lived_in()(x)
    assert isinstance(output, PackedSequence)
    assert torch.equal(output.batch_sizes, x.batch_sizes)
    assert torch.equal(output.unsorted_indices, x.unsorted_indices)
