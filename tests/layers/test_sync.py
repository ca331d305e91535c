"""Functions `on_...` run on each of four ranks; tests judge what all of them brought back."""

import copy
import math
import os
import pickle
import re
import signal
import time
from functools import partial
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from filelock import FileLock
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from bnkit.kernels.activations import ACTIVATIONS
from bnkit.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, exchange
from bnkit.layers.exchange import Place, Ranks, SyncError, make_group
from bnkit.layers.sync import SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d
from bnkit.observation import normalising_by_batch_statistics
from cases import CASES, seeded
from ranks import outcome_at, outcomes_of

SIZE = 4
LIMIT = 120  # seconds in which all ranks must have ended, on a busy machine
SHORT = 2  # seconds for which a rank waits where another does not come
PAIRS = {
    SyncBatchNorm1d: (BatchNorm1d, nn.BatchNorm1d, (6, 3, 2)),
    SyncBatchNorm2d: (BatchNorm2d, nn.BatchNorm2d, (6, 3, 2, 2)),
    SyncBatchNorm3d: (BatchNorm3d, nn.BatchNorm3d, (6, 3, 2, 2, 1)),
}
KINDS = pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.__name__)
FITTING = [case for case in CASES if len(case.shape) <= 5]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7}
OPTIONS = (
    {},
    {"eps": 0.1, "momentum": 0.7},
    {"momentum": None},  # the average over all batches so far
    {"affine": False},
    {"bias": False},
    {"track_running_stats": False},
    *({"activation": name} for name in ACTIVATIONS if name),
)


def rows_of(rank, n, size):
    """Return which of n rows a rank has: unequal shares, of four ranks' the third empty."""
    first = (n + 1) // 2
    bounds = {2: (0, first, n), 4: (0, first, first + (n - first) // 3)}[size]
    bounds = bounds if size == 2 else (*bounds, bounds[-1], n)
    return slice(bounds[rank], bounds[rank + 1])


def kind_for(x):
    return {2: SyncBatchNorm1d, 3: SyncBatchNorm1d, 4: SyncBatchNorm2d, 5: SyncBatchNorm3d}[x.dim()]


def filled(layer):
    """Give parameters that are not 1 and 0, the same in each process."""
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
    return layer


def step(layer, x, residual, loss_weights):
    """Train one step on the loss Σ y·loss_weights, a sum over rows; return all that comes of it."""
    x = x.detach().requires_grad_()
    residual = None if residual is None else residual.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x) if residual is None else layer(x, residual)
    (y * loss_weights).sum().backward()
    by_rows = {"y": y.detach(), "dx": x.grad}
    if residual is not None:
        by_rows["dresidual"] = residual.grad
    gradients = {name.removeprefix("norm."): p.grad for name, p in layer.named_parameters()}
    state = {name.removeprefix("norm."): b.clone() for name, b in layer.named_buffers()}
    return {"rows": by_rows, "gradients": gradients, "state": state}


def tensors(case, dtype):
    return (case.input(dtype), *(case_like(case, seed).to(dtype) for seed in (1, 2)))


def case_like(case, seed):
    return torch.randn(case.shape, generator=seeded(seed), dtype=torch.float64)


def lost_digits(case):
    """By how much rounding is magnified: by a mean far off, and where terms of dx cancel."""
    n = math.prod(case.shape) // case.shape[1]
    # Two values are normalised to ±1 whatever they are, up to eps: almost nothing of dx is left.
    return case.condition(1e-5) * (1e5 if n == 2 else 1)


def error(a, b, *, at_least=0.0):
    """Return max|a − b| / max|b|, where max|b| counts as `at_least`."""
    assert a.shape == b.shape
    if not b.numel() or torch.equal(a.double(), b.double()):
        return 0.0
    return ((a.double() - b.double()).abs().max() / b.abs().max().clamp_min(at_least)).item()


def assert_whole(steps, expected, tolerance):
    """Check that what the ranks did in a step is together what one process did."""
    for name, value in expected["rows"].items():
        together = torch.cat([s["rows"][name] for s in steps])
        assert error(together, value) <= tolerance, name
    for name, value in expected["gradients"].items():
        together = sum(s["gradients"][name] for s in steps)
        # Sums of values around 1: in constant channels nothing but their rounding is left.
        assert error(together, value, at_least=1.0) <= tolerance, name
    for name, value in expected["state"].items():
        for s in steps:
            assert error(s["state"][name], value) <= tolerance, name
            assert torch.equal(s["state"][name], steps[0]["state"][name]), name


# Equal to one process


def case_steps(rank, size, group):
    steps = {}
    for case in FITTING:
        for dtype in (d for d in TOLERANCES if case.fits(d)):
            x, residual, loss_weights = tensors(case, dtype)
            rows = rows_of(rank, len(x), size)
            wide = torch.promote_types(dtype, torch.float32)
            for activation in (None, "silu"):
                r = None if activation is None else residual[rows]
                layer = kind_for(x)(
                    x.shape[1], activation=activation, process_group=group, dtype=wide
                )
                steps[f"{case} {dtype} {activation}"] = step(
                    filled(layer), x[rows], r, loss_weights[rows]
                )
    return steps


def on_four_ranks(rank):
    return case_steps(rank, 4, None)


def on_two_ranks_twice(rank):
    groups = [make_group(30, ranks=pair) for pair in ([0, 1], [2, 3])]
    return case_steps(rank % 2, 2, groups[rank // 2])


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", FITTING, ids=str)
def test_ranks_with_unequal_batches_are_one_process_with_the_whole_batch(
    case, dtype, activation, outcomes
):
    if not case.fits(dtype):
        return
    x, residual, loss_weights = (t.double() for t in tensors(case, dtype))
    residual = None if activation is None else residual
    plain = PAIRS[kind_for(x)][0](x.shape[1], activation=activation, dtype=torch.float64)
    wide = torch.promote_types(dtype, torch.float32)
    filled(plain.to(wide)).double()  # parameters that are exact in the layers' dtype
    expected = step(plain, x, residual, loss_weights)
    name, tolerance = f"{case} {dtype} {activation}", TOLERANCES[dtype] * lost_digits(case)
    four, pairs = (values(outcomes[f"on_{n}"]) for n in ("four_ranks", "two_ranks_twice"))
    for group in (four, pairs[:2], pairs[2:]):
        assert_whole([steps[name] for steps in group], expected, tolerance)


def assert_all_refuse(of_ranks, pattern):
    for outcome in of_ranks:
        assert re.search(pattern, outcome.error), outcome


def other_options(rank):
    x, loss_weights = (torch.randn(9, 3, 4, generator=seeded(s)).double() for s in (1, 2))
    rows = slice(None) if rank is None else rows_of(rank, 9, SIZE)
    kind = BatchNorm1d if rank is None else SyncBatchNorm1d
    lives = []
    for options in OPTIONS:
        layer = filled(kind(3, dtype=torch.float64, **options))
        batches = (x[rows], (x * 2 + 1)[rows])
        lives.append([step(layer, batch, None, loss_weights[rows]) for batch in batches])
    return lives


def on_ranks_with_other_options(rank):
    return other_options(rank)


@pytest.mark.parametrize("index", range(len(OPTIONS)), ids=lambda index: str(OPTIONS[index]))
def test_every_option_of_the_layer_holds_over_several_steps(index, outcomes):
    lives = [life[index] for life in values(outcomes["on_ranks_with_other_options"])]
    for number, expected in enumerate(other_options(None)[index]):
        assert_whole([life[number] for life in lives], expected, 1e-12)


def network(kind):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), kind(4), nn.ReLU(), nn.Conv2d(4, 4, 3), kind(4), nn.Flatten(1)
    ).double()


def on_a_network_in_data_parallel(rank):
    group = make_group(30, ranks=[0, 1])
    if rank > 1:  # two are enough: what it imports takes seconds
        return None
    x = torch.randn(9, 1, 6, 6, generator=seeded(1)).double()
    network_of_rank = network(partial(SyncBatchNorm2d, process_group=group))
    model = DistributedDataParallel(network_of_rank, process_group=group)
    loss = model(x[rows_of(rank, 9, 2)]).square().sum() * 2 / 9  # as the docstring says
    loss.backward()
    return {
        "gradients": {name: p.grad for name, p in model.module.named_parameters()},
        "state": model.module.state_dict(),
    }


def test_data_parallel_has_the_gradients_of_the_whole_batch_for_a_loss_scaled_by_rows(outcomes):
    model = network(nn.BatchNorm2d)
    x = torch.randn(9, 1, 6, 6, generator=seeded(1)).double()
    (model(x).square().sum() / 9).backward()
    for of_rank in values(outcomes["on_a_network_in_data_parallel"])[:2]:
        for name, parameter in model.named_parameters():
            # a bias before a batch norm has the gradient 0
            assert (of_rank["gradients"][name] - parameter.grad).abs().max() <= 1e-12, name
        for name, value in model.state_dict().items():
            assert error(of_rank["state"][name], value) <= 1e-12, name


def called_twice(layer, x, way):
    """Use one layer twice before the backward, in three ways of which each meets twice."""
    x = x.detach().requires_grad_()
    if way == "shared":
        layer(layer(x).sin()).cos().sum().backward()
    elif way == "last first":
        first, second = layer(x), layer(x * x)
        first.cos().sum().backward()
        second.cos().sum().backward()
    else:
        checkpoint(layer, x, use_reentrant=way == "reentrant").cos().sum().backward()
    return {
        "rows": {"dx": x.grad},
        "gradients": {name.removeprefix("norm."): p.grad for name, p in layer.named_parameters()},
        "state": layer.state_dict(),
    }


WAYS = ("shared", "last first", "reentrant", "not reentrant")


def on_layers_called_twice(rank):
    x = torch.randn(9, 3, generator=seeded(1)).double()[rows_of(rank, 9, SIZE)]
    return {way: called_twice(SyncBatchNorm1d(3, dtype=torch.float64), x, way) for way in WAYS}


@pytest.mark.parametrize("way", WAYS)
def test_layers_called_twice_and_activation_checkpointing_are_exact(way, outcomes):
    x = torch.randn(9, 3, generator=seeded(1)).double()
    expected = called_twice(BatchNorm1d(3, dtype=torch.float64), x, way)
    steps = [of_rank[way] for of_rank in values(outcomes["on_layers_called_twice"])]
    assert_whole(steps, expected, 1e-12)


def on_a_backend_that_is_not_gloo(rank):
    x = torch.randn(2 + rank, 3, requires_grad=True, generator=seeded(rank))
    loss_weights = torch.randn(2 + rank, 3, generator=seeded(rank + 10))
    over_gloo = step(SyncBatchNorm1d(3), x, None, loss_weights)
    with mock.patch.object(exchange, "_backends", return_value={"cpu": "another"}):
        over_another = step(SyncBatchNorm1d(3), x, None, loss_weights)
    return over_gloo, over_another


def test_backends_other_than_gloo_gather_the_same(outcomes):
    for over_gloo, over_another in values(outcomes["on_a_backend_that_is_not_gloo"]):
        for part, expected in over_gloo.items():
            for name, value in expected.items():
                assert torch.equal(over_another[part][name], value), name


# Mini-batches that are not as they should be


def on_a_value_that_is_not_finite(rank):
    x = torch.randn(9, 3, generator=seeded(1))
    layer = SyncBatchNorm1d(3)
    for poison in (0.0, math.nan, math.inf, 0.0):
        bad = x.clone()
        bad[-1, 1] += poison  # on the last rank
        layer(bad[rows_of(rank, 9, SIZE)])
    return {**layer.state_dict(), "non_finite_batches": layer.non_finite_batches}


def test_a_value_that_is_not_finite_on_one_rank_stays_out_on_every_rank(outcomes):
    x, plain = torch.randn(9, 3, generator=seeded(1)), BatchNorm1d(3)
    plain(x)
    plain(x)
    for buffers in values(outcomes["on_a_value_that_is_not_finite"]):
        assert buffers["non_finite_batches"] == 2
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert error(buffers[name], plain.state_dict()[name]) <= 1e-6, name


def on_one_value_per_channel(rank):
    return SyncBatchNorm1d(3)(torch.ones(int(rank == 1), 3))


def test_one_value_per_channel_over_all_ranks_is_refused_on_every_rank(outcomes):
    pattern = r"ValueError: `input` has 1 value per channel over all ranks .* \([01], 3\)"
    assert_all_refuse(outcomes["on_one_value_per_channel"], pattern)


def on_empty_batches_everywhere(rank):  # noqa: ARG001  all do the same
    layer = SyncBatchNorm2d(3)
    x = torch.ones(0, 3, 2, 2, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    return {"y": y.detach(), "dx": x.grad, **layer.state_dict()}


def test_empty_batches_everywhere_are_one_empty_batch(outcomes):
    layer = BatchNorm2d(3)
    y = layer(torch.ones(0, 3, 2, 2)).detach()
    for of_rank in values(outcomes["on_empty_batches_everywhere"]):
        for name, value in {"y": y, "dx": torch.ones(0, 3, 2, 2), **layer.state_dict()}.items():
            assert torch.equal(of_rank[name], value), name


def on_wrong_arguments(rank):  # noqa: ARG001
    layer, refusals = SyncBatchNorm1d(3, sync_name="head"), []
    for arguments in ([torch.ones(4, 5)], [torch.ones(4, 3), torch.ones(4, 1)]):
        try:
            layer(*arguments)
        except (RuntimeError, ValueError) as refusal:
            refusals.append(f"{type(refusal).__name__}: {refusal}")
    return refusals


def test_wrong_arguments_are_refused_before_anything_is_exchanged(outcomes):
    for channels, residual in values(outcomes["on_wrong_arguments"]):
        assert "RuntimeError: `input` of shape (4, 5) has 5 channels and layer 'head' 3" in channels
        assert "ValueError: `residual` has shape (4, 1) and `input` (4, 3)" in residual


# Where nothing is exchanged


def on_one_rank_that_acts_alone(rank):
    if rank:
        return None
    layer, plain = SyncBatchNorm1d(3), nn.BatchNorm1d(3)
    x = torch.randn(5, 3)
    with normalising_by_batch_statistics(layer):
        by_batch = layer(x)
    close = partial(torch.allclose, rtol=1e-6, atol=1e-6)  # another kernel, other bits
    return close(layer.eval()(x), plain.eval()(x)) and close(by_batch, plain.train()(x))


def test_a_rank_in_eval_mode_needs_no_other(outcomes):
    assert values(outcomes["on_one_rank_that_acts_alone"])[0] is True


def on_groups_of_one(rank):
    groups = [make_group(ranks=[r]) for r in range(SIZE)]
    x = torch.randn(4, 3, generator=seeded(rank))
    alone, plain = SyncBatchNorm1d(3, process_group=groups[rank]), BatchNorm1d(3)
    same = torch.equal(alone(x), plain(x)) and torch.equal(alone.running_var, plain.running_var)
    try:
        SyncBatchNorm1d(3, process_group=groups[rank - 1], sync_name="stem")(x)
    except RuntimeError as refusal:
        return same, str(refusal)


def test_a_group_of_one_is_plain_batch_norm_and_a_group_of_others_is_refused(outcomes):
    for same, refusal in values(outcomes["on_groups_of_one"]):
        assert same
        assert "this process is not one of the `process_group` of layer 'stem'" in refusal


@KINDS
def test_without_torch_distributed_it_is_plain_batch_norm(kind):
    plain, _, shape = PAIRS[kind]
    x, residual, loss_weights = torch.randn(3, *shape)
    ours, theirs = (k(3, activation="relu") for k in (kind, plain))
    assert_whole(
        [step(ours, x, residual, loss_weights)], step(theirs, x, residual, loss_weights), 0
    )


# Copies and checkpoints


@KINDS
def test_layers_are_those_of_torch_and_checkpoints_load_both_ways(kind):
    ours, theirs = kind(3, sync_name="bn1"), PAIRS[kind][1](3)
    assert isinstance(ours, PAIRS[kind][1])
    ours(torch.randn(PAIRS[kind][2]))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    theirs(torch.randn(PAIRS[kind][2]))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert {k: v.tolist() for k, v in ours.state_dict().items()} == {
        k: v.tolist() for k, v in theirs.state_dict().items()
    }


def on_copies(rank):
    group, x = make_group(30), torch.randn(3 + rank, 3)
    layer = SyncBatchNorm1d(3, process_group=group, sync_name="bn1", activation="relu")
    copies = [copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    same = [c.process_group is group for c in copies]
    outputs = [c.train()(x) for c in copies[:2]]
    try:
        copies[2](x)
    except RuntimeError as refusal:
        text = str(refusal)
    copies[2].process_group = None
    outputs.append(copies[2](x))
    outputs.append(pickle.loads(pickle.dumps(SyncBatchNorm1d(3, activation="relu")))(x))
    return same, text, [torch.equal(y, outputs[0]) for y in outputs]


def test_copies_share_the_group_and_a_pickle_that_lost_it_asks_for_one(outcomes):
    for same, text, equal in values(outcomes["on_copies"]):
        assert same == [True, True, False]
        assert text.startswith("layer 'bn1' was pickled, and a pickle cannot hold its process grou")
        assert "make_group()" in text
        assert equal == [True] * 4


def test_a_pickle_is_used_alone_as_it_is():
    layer = SyncBatchNorm1d(3, sync_name="bn1")
    layer._ranks = Ranks(object())  # stands for a group: nothing is exchanged here
    other, x = pickle.loads(pickle.dumps(layer)), torch.randn(4, 3)
    assert (other.sync_name, other.process_group) == ("bn1", None)
    assert torch.equal(other(x), layer(x))
    assert pickle.loads(pickle.dumps(other))._ranks._lost


# What others do with layers


def on_second_derivatives(rank):  # noqa: ARG001
    x = torch.randn(4, 3, requires_grad=True)
    y = SyncBatchNorm1d(3, sync_name="bn1")(x)
    torch.autograd.grad(y.square().sum(), x, create_graph=True)


def test_a_second_derivative_is_refused_on_every_rank(outcomes):
    pattern = r"backward of layer 'bn1' \(call 1, 3 channels\) has no second derivative"
    assert_all_refuse(outcomes["on_second_derivatives"], pattern.replace("backward", "forward"))


def on_compiled_models(rank):
    if rank > 1:  # two are enough: the compiler takes seconds to import
        make_group(30, ranks=[0, 1])
        return 0.0
    group, x = make_group(30, ranks=[0, 1]), torch.randn(2 + rank, 3)
    model = nn.Sequential(nn.Linear(3, 3), SyncBatchNorm1d(3, process_group=group), nn.ReLU())
    return (torch.compile(model, backend="eager")(x) - model(x)).abs().max().item()


def test_compiled_models_meet_outside_of_their_graphs(outcomes):
    assert values(outcomes["on_compiled_models"]) == [0.0] * SIZE


# Ranks that do not meet: each in a group of its own, which is of no use afterwards


def on_layers_in_another_order(rank):
    group, x = make_group(LIMIT), torch.randn(4, 3)
    a, b = (SyncBatchNorm1d(3, process_group=group, sync_name=name) for name in ("a", "b é"))
    return [layer(x) for layer in ((b, a) if rank == 2 else (a, b))]


def test_layers_called_in_another_order_are_named_on_every_rank(outcomes):
    of_ranks = outcomes["on_layers_in_another_order"]
    a, b = (f"in the forward of layer '{name}' (call 1, 3 channels)" for name in ("a", "b é"))
    for rank in (0, 1, 3):
        assert f"SyncError: rank {rank} is {a}, but rank 2 {b}: all" in of_ranks[rank].error
    others = "; ".join(f"rank {rank} {a}" for rank in (0, 1, 3))
    assert f"SyncError: rank 2 is {b}, but {others}: all ranks must" in of_ranks[2].error


def on_forward_and_backward(rank):
    layer = SyncBatchNorm1d(3, process_group=make_group(LIMIT), sync_name="bn1")
    y = layer(torch.randn(4, 3, requires_grad=True))
    if rank == 0:
        layer(y)
    y.sum().backward()


def test_a_rank_ahead_in_another_phase_is_named_on_every_rank(outcomes):
    of_ranks = outcomes["on_forward_and_backward"]
    ahead, behind = "forward of layer 'bn1' (call 2, 3", "backward of layer 'bn1' (call 1, 3"
    assert f"rank 0 is in the {ahead} channels), but rank 1 in the {behind}" in of_ranks[0].error
    for rank in (1, 2, 3):
        assert (
            f"rank {rank} is in the {behind} channels), but rank 0 in the {ahead}"
            in of_ranks[rank].error
        )


def on_other_numbers_of_channels(rank):
    channels = 3 + rank // 2
    SyncBatchNorm1d(channels, process_group=make_group(LIMIT))(torch.randn(4, channels))


def test_layers_of_other_sizes_are_told_apart(outcomes):
    pattern = r"SyncBatchNorm1d' \(call 1, [34] channels\), but rank .* \(call 1, [34] channels\)"
    assert_all_refuse(outcomes["on_other_numbers_of_channels"], pattern)


def on_one_rank_in_eval_mode(rank):
    dist.barrier()  # none may be late already
    layer = SyncBatchNorm1d(3, process_group=make_group(SHORT), sync_name="bn1")
    if rank == 3:
        layer.eval()(torch.randn(4, 3))
        time.sleep(SHORT + 1)  # meanwhile the others wait, and give up
    errors = []
    for _ in range(2):
        with pytest.raises(SyncError) as error:
            layer.train()(torch.randn(4, 3))
        errors.append(str(error.value))
    return errors


def test_ranks_stop_waiting_for_one_in_eval_mode_and_it_finds_them_gone(outcomes):
    of_ranks = values(outcomes["on_one_rank_in_eval_mode"])
    for rank in range(3):
        assert of_ranks[rank][0].startswith(
            f"rank {rank} is in the forward of layer 'bn1' (call 1, 3 channels), where rank 3 did "
            f"not come within the limit of 2 s: dead, in eval mode"
        )
    assert "where ranks 0, 1, 2 closed the connection (limit 2 s)" in of_ranks[3][0]


def test_after_an_error_the_group_is_of_no_more_use_and_says_so_at_once(outcomes):
    for _, second in values(outcomes["on_one_rank_in_eval_mode"]):
        assert "closed the connection" in second
        assert "This group is of no more use: make another, as by make_group()" in second


def on_the_death_of_a_rank(rank):  # the last: afterwards there are three
    group = make_group(1000 * LIMIT)  # it is not the limit that ends the waiting
    layer = SyncBatchNorm1d(3, process_group=group, sync_name="bn1")
    y = layer(torch.randn(4, 3, requires_grad=True))
    if rank == 1:
        time.sleep(0.3)  # the others wait for it by now
        os.kill(os.getpid(), signal.SIGKILL)
    y.sum().backward()


def test_when_a_rank_dies_the_others_end_with_an_error_that_names_it(outcomes):
    of_ranks = outcomes["on_the_death_of_a_rank"]
    assert of_ranks[1] is None
    for rank in (0, 2, 3):
        assert (
            f"SyncError: rank {rank} is in the backward of layer 'bn1' (call 1, 3 channels), where "
            f"rank 1 closed the connection (limit 120000 s): dead"
        ) in of_ranks[rank].error


@pytest.mark.parametrize(
    ("name", "arrives"),
    [
        ("features.1", "features.1"),
        ("a name with spaces: é", "a name with spaces: é"),
        ("", ""),
        ("a" * 200 + "b" * 100, "a" * 80 + "b" * 100),  # the end tells layers apart
    ],
    ids=["a path", "not ASCII", "the model itself", "longer than a header"],
)
def test_a_header_says_where_a_rank_is(name, arrives):
    header = exchange._header(Place(name, 10**9, "backward", 10**6), 10**12)
    assert header.shape == exchange._header(Place("b", 1, "forward", 1), 0).shape
    place = Place(arrives, 10**9, "backward", 10**6)
    assert exchange._read(bytes(header.tolist())) == (place, 10**12)


def test_errors_of_the_exchange_are_runtime_errors():
    assert issubclass(SyncError, RuntimeError)


@pytest.mark.parametrize("timeout", [0.0, -1.0, math.nan])
def test_a_limit_that_is_not_positive_is_refused(timeout):
    with pytest.raises(ValueError, match=rf"`timeout` is {timeout}: give the seconds"):
        make_group(timeout)


def test_a_group_needs_torch_distributed():
    assert not dist.is_initialized()
    with pytest.raises(ValueError, match="has not been initialized"):
        make_group()


def values(of_ranks):
    """Return what the ranks returned, where none raised."""
    assert [outcome.error for outcome in of_ranks] == [""] * len(of_ranks)
    return [outcome.value for outcome in of_ranks]


CHECKS = [name for name in list(globals()) if name.startswith("on_")]


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory, worker_id):
    """Return what each function gave on each rank, once for all workers of this test run."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "sync"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            outcomes_of(__file__, CHECKS, folder, size=SIZE, limit=LIMIT)
    return {name: [outcome_at(folder, name, rank) for rank in range(SIZE)] for name in CHECKS}
