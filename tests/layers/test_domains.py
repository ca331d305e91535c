import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnkit.layers.domains import (
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainBatchNorm3d,
    domain,
)
from bnkit.observation import normalising_by_batch_statistics
from cases import equal, torchs

PAIRS = {
    DomainBatchNorm1d: nn.BatchNorm1d,
    DomainBatchNorm2d: nn.BatchNorm2d,
    DomainBatchNorm3d: nn.BatchNorm3d,
}
KINDS = pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.__name__)
INPUTS = pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (DomainBatchNorm1d, (6, 3)),
        (DomainBatchNorm1d, (6, 3, 5)),
        (DomainBatchNorm2d, (4, 3, 5, 2)),
        (DomainBatchNorm3d, (2, 3, 2, 4, 2)),
    ],
    ids=["1d", "1d with length", "2d", "3d"],
)
TIMES = ("day", "night", "dusk")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def separate(layer, kind, **options):
    """Return torch's layer for each domain, all with the weight and bias of `layer`, if given."""
    layers = {name: torchs(PAIRS[kind], 3, **options) for name in TIMES}
    for other in layers.values() if layer is not None else ():
        other.weight, other.bias = layer.weight, layer.bias
    return layers


def assert_same_statistics(layer, theirs):
    """Check each domain's buffers, by the names that they have in checkpoints."""
    state = layer.state_dict()
    for name, other in theirs.items():
        ending = "" if name == "day" else f"_{name}"
        for statistic in STATISTICS:
            found = state[f"{statistic}{ending}"]
            assert equal(found, getattr(other, statistic)), (name, statistic)


# What is computed


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@INPUTS
def test_a_life_is_that_of_a_torch_layer_for_each_domain(kind, shape, affine, momentum):
    options = {"affine": affine, "momentum": momentum}
    layer = kind(3, domains=TIMES, **options)
    theirs = separate(layer, kind, **options)
    for i, name in enumerate(("night", "night", "dusk", "day", "night", "dusk")):
        for training in (True, False):
            x = (torch.randn(shape) * (1 + i) + i).requires_grad_()
            with domain(layer, name):
                y = layer.train(training)(x)
            expected = theirs[name].train(training)(x)
            leaves = [x, *layer.parameters()]
            assert equal(y, expected)
            for mine, other in zip(
                torch.autograd.grad(y.pow(3).sum(), leaves),
                torch.autograd.grad(expected.pow(3).sum(), leaves),
                strict=True,
            ):
                assert equal(mine, other)
    assert_same_statistics(layer, theirs)


def each(kind=DomainBatchNorm1d, **options):
    """Return a layer of which each domain has a weight and a bias of its own, not as new."""
    layer = kind(3, domains=TIMES, affine="each", **options)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return layer


@INPUTS
def test_with_a_weight_and_a_bias_for_each_it_is_a_torch_layer_for_each(kind, shape):
    layer, theirs = each(kind), separate(None, kind)
    for name, other in theirs.items():
        with domain(layer, name):
            other.load_state_dict({key: getattr(layer, key) for key in other.state_dict()})
    optimizers = [
        torch.optim.SGD(each.parameters(), lr=0.1) for each in (layer, nn.ModuleDict(theirs))
    ]
    for i, name in enumerate(("night", "dusk", "day", "night")):
        x = torch.randn(shape) * (1 + i) + i
        with domain(layer, name):
            y = layer(x)
        for made, optimizer in zip((y, theirs[name](x)), optimizers, strict=True):
            optimizer.zero_grad()
            made.pow(3).mean().backward()
            optimizer.step()
    assert_same_statistics(layer, theirs)
    assert len(list(layer.parameters())) == 6
    for name, other in theirs.items():
        with domain(layer.eval(), name):
            assert equal(layer.weight, other.weight)
            assert equal(layer.bias, other.bias)
            assert equal(layer(x), other.eval()(x))


@INPUTS
def test_without_a_choice_it_is_torchs_layer_of_the_first_domain(kind, shape):
    layer, theirs = kind(3, domains=TIMES), PAIRS[kind](3)
    for training in (True, False):
        x = torch.randn(shape)
        assert equal(layer.train(training)(x), theirs.train(training)(x))
    assert_same_statistics(layer, {"day": theirs, "night": PAIRS[kind](3)})


def test_activation_and_residual_come_after_it():
    layer, x = DomainBatchNorm1d(3, domains=TIMES, activation="relu"), torch.randn(8, 3)
    with domain(layer, "night"):
        assert equal(layer(x, x), torch.relu(nn.BatchNorm1d(3)(x) + x))


# The choice


def test_a_block_chooses_for_all_layers_of_a_model():
    model = nn.Sequential(
        DomainBatchNorm1d(3, domains=("day", "night")),
        nn.Sequential(nn.Linear(3, 3), DomainBatchNorm1d(3, domains=("night", "day"))),
        nn.BatchNorm1d(3),
    )
    other = copy.deepcopy(model)
    with domain(model, "night"):
        model(torch.randn(8, 3))
        other(torch.randn(8, 3))  # another model has a choice of its own
    counts = {k: v.item() for k, v in model.state_dict().items() if "num_batches" in k}
    assert counts == {
        "0.num_batches_tracked": 0,
        "0.num_batches_tracked_night": 1,
        "1.1.num_batches_tracked": 1,
        "1.1.num_batches_tracked_day": 0,
        "2.num_batches_tracked": 1,
    }
    assert other[0].num_batches_tracked.item() == 1


def test_blocks_nest_and_give_back_what_they_found():
    model = nn.Sequential(DomainBatchNorm1d(3, domains=TIMES))
    chosen = [model[0].domain]

    def fail():
        chosen.append(model[0].domain)
        raise ZeroDivisionError

    with domain(model, "night"):
        with pytest.raises(ZeroDivisionError), domain(model, "dusk"):
            fail()
        chosen.append(model[0].domain)
    assert [*chosen, model[0].domain] == ["day", "dusk", "night", "day"]


def test_an_inner_block_for_a_part_of_the_model_is_undone_alone():
    model = nn.Sequential(*(DomainBatchNorm1d(3, domains=TIMES) for _ in range(2)))
    with domain(model, "night"):
        with domain(model[1], "day"):
            assert [layer.domain for layer in model] == ["night", "day"]
        assert [layer.domain for layer in model] == ["night", "night"]


def test_an_unknown_name_is_refused_before_any_layer_has_changed():
    model = nn.Sequential(
        DomainBatchNorm1d(3, domains=TIMES), DomainBatchNorm1d(3, domains=("day", "night"))
    )
    with (
        pytest.raises(
            ValueError,
            match=r"`name` is 'dusk', and layer '1' \(DomainBatchNorm1d\) has the domains 'day'",
        ),
        domain(model, "dusk"),
    ):
        pass
    assert [layer.domain for layer in model] == ["day", "day"]


def test_a_model_without_domains_is_refused():
    with (
        pytest.raises(
            ValueError,
            match=r"`model` \(BatchNorm1d\) has no per-domain batch norm.*the domain 'night'",
        ),
        domain(nn.BatchNorm1d(3), "night"),
    ):
        pass


def test_attributes_are_those_of_the_chosen_domain_and_state_dicts_of_all():
    layer = DomainBatchNorm1d(3, domains=TIMES)
    layer.running_mean_night.fill_(5.0)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    with domain(layer, "night"):
        assert layer.running_mean.tolist() == [5.0] * 3
        layer.running_var = torch.full((3,), 7.0)  # as some libraries replace buffers
        layer.num_batches_tracked.fill_(9)
        inside = layer.state_dict()
    assert list(inside) == list(state)
    assert torch.equal(inside["running_mean"], state["running_mean"])
    assert layer.running_var.tolist() == [1.0] * 3
    assert layer.running_var_night.tolist() == [7.0] * 3
    assert [layer.num_batches_tracked.item(), layer.num_batches_tracked_night.item()] == [0, 9]


def test_others_may_borrow_the_statistics_of_the_chosen_domain():
    layer, x = DomainBatchNorm1d(3, domains=TIMES), torch.randn(8, 3)
    layer.running_mean_night.fill_(5.0)
    before = copy.deepcopy(layer.state_dict())
    with domain(layer, "night"), normalising_by_batch_statistics(layer):
        torch.testing.assert_close(layer(x), nn.BatchNorm1d(3)(x))
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "copy", "pickle"],
)
@pytest.mark.parametrize("affine", [True, "each"])
def test_a_copy_keeps_the_choice_under_which_it_was_made(duplicate, affine):
    layer, x = DomainBatchNorm1d(3, domains=TIMES, affine=affine).eval(), torch.randn(4, 3)
    nn.init.uniform_(next(reversed(list(layer.parameters()))))
    layer.running_mean_night.fill_(5.0)
    with domain(layer, "night"):
        other, expected = duplicate(layer), layer(x)
    assert torch.equal(other(x), expected)
    assert layer.domain == "day"
    assert repr(other).endswith("domains=('day', 'night', 'dusk'), domain='night')")


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_counts_a_mini_batch_once(use_reentrant):
    layer, plain = DomainBatchNorm1d(3, domains=TIMES), nn.BatchNorm1d(3)
    x = torch.randn(8, 3, requires_grad=True)
    expected = torch.autograd.grad(plain(x).pow(3).sum(), x)[0]
    with domain(layer, "night"):
        y = checkpoint(layer, x, use_reentrant=use_reentrant)
    y.pow(3).sum().backward()  # outside of the block
    assert equal(x.grad, expected)
    assert_same_statistics(layer, {"day": nn.BatchNorm1d(3), "night": plain})


# Checkpoints


@KINDS
def test_a_checkpoint_of_torch_goes_to_every_domain(kind):
    theirs, layer = PAIRS[kind](3), kind(3, domains=TIMES)
    theirs(torch.randn([4, 3, 2, 2, 2][: {1: 2, 2: 4, 3: 5}[int(kind.__name__[-2])]]))
    with domain(layer, "dusk"):  # whatever is chosen
        layer.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_statistics(layer, dict.fromkeys(TIMES, theirs))
    layer.running_mean_night.fill_(5.0)
    assert torch.equal(layer.running_mean, theirs.running_mean)  # nothing is shared


def test_a_checkpoint_of_torch_loads_in_a_model():
    theirs = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    ours = nn.Sequential(nn.Linear(3, 3), DomainBatchNorm1d(3, domains=TIMES))
    theirs(torch.randn(8, 3))
    state = theirs.state_dict()
    ours.load_state_dict(state)
    assert_same_statistics(ours[1], dict.fromkeys(TIMES, theirs[1]))
    assert list(state) == list(theirs.state_dict())  # the caller's is as it was


@pytest.mark.parametrize("assign", [True, False])
def test_weights_of_a_checkpoint_that_has_them_once_go_to_each_domain(assign):
    shared = DomainBatchNorm1d(3, domains=TIMES)
    nn.init.uniform_(shared.weight)
    nn.init.uniform_(shared.running_mean_night)
    for theirs in (shared, nn.BatchNorm1d(3)):
        layer = each()
        layer.load_state_dict(theirs.state_dict(), assign=assign)
        night = getattr(theirs, "running_mean_night", theirs.running_mean)
        assert torch.equal(layer.running_mean_night, night)
        for weight in (layer.weight, layer.weight_night, layer.weight_dusk):
            assert torch.equal(weight, theirs.weight)
        pointers = {tensor.data_ptr() for tensor in layer.state_dict().values()}
        assert len(pointers) == len(layer.state_dict()) == 15  # nothing is shared
    again = each()
    again.load_state_dict((layer := each()).state_dict())
    for key, value in layer.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_checkpoints_from_before_the_batches_were_counted_load():
    state = nn.BatchNorm2d(3).state_dict()
    del state["num_batches_tracked"], state._metadata
    layer = DomainBatchNorm2d(3, domains=TIMES)
    layer.num_batches_tracked_night.fill_(7)
    layer.load_state_dict(state, strict=True)
    assert layer.num_batches_tracked_night.item() == 0


def test_a_checkpoint_without_statistics_says_what_is_missing():
    layer = DomainBatchNorm1d(3, domains=("day", "night"))
    state = nn.BatchNorm1d(3, track_running_stats=False).state_dict()
    with pytest.raises(RuntimeError, match=r'"running_mean", .*"running_mean_night"'):
        layer.load_state_dict(state)


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("chosen", TIMES)
def test_a_checkpoint_of_its_own_loads_with_weights_only_and_keeps_the_domains_apart(
    assign, chosen
):
    layer, file = DomainBatchNorm1d(3, domains=TIMES), io.BytesIO()
    for name in TIMES:
        with domain(layer, name):
            layer(torch.randn(8, 3))
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = DomainBatchNorm1d(3, domains=TIMES)
    with domain(other, chosen):
        other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    for key, value in layer.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    assert not torch.equal(other.running_mean, other.running_mean_night)


def test_a_checkpoint_of_other_domains_is_refused_by_their_names():
    state = DomainBatchNorm1d(3, domains=("day", "dawn")).state_dict()
    with pytest.raises(RuntimeError, match=r'(?s)Missing.*"running_mean_night".*Unexp.*_dawn'):
        DomainBatchNorm1d(3, domains=("day", "night")).load_state_dict(state)


@KINDS
def test_torchs_layer_takes_the_first_domain_where_that_was_asked_for(kind):
    layer, theirs = kind(3, domains=TIMES), PAIRS[kind](3)
    layer.running_mean.fill_(2.0)
    theirs.load_state_dict(layer.state_dict(), strict=False)
    assert theirs.running_mean.tolist() == [2.0] * 3


# Faults


def test_a_mini_batch_that_is_not_finite_stays_out_of_the_running_statistics():
    layer = DomainBatchNorm1d(3, domains=TIMES)
    with domain(layer, "night"):
        assert layer(torch.full((4, 3), float("nan"))).isnan().all()
    assert_same_statistics(layer, dict.fromkeys(TIMES, nn.BatchNorm1d(3)))
    assert layer.non_finite_batches.item() == 1


@pytest.mark.parametrize("domains", ["day", ("day", 1), (None,), ("day", "")], ids=str)
def test_domains_that_are_no_names_are_refused(domains):
    with pytest.raises(TypeError, match=r"`domains` is .*: pass the names in a tuple, as in"):
        DomainBatchNorm1d(3, domains=domains)


@pytest.mark.parametrize("domains", [(), ("day", "day"), ("day", "night.late")], ids=str)
def test_domains_that_cannot_be_told_apart_are_refused(domains):
    with pytest.raises(ValueError, match=r"`domains` is \(.*: pass at least one name, each once"):
        DomainBatchNorm1d(3, domains=domains)


def test_a_layer_without_running_statistics_is_refused():
    with pytest.raises(ValueError, match=r"`track_running_stats` is False: without running stat"):
        DomainBatchNorm1d(3, domains=TIMES, track_running_stats=False)


# What others do with layers


@KINDS
def test_layers_are_those_of_torch_to_others(kind):
    layer = kind(3, domains=("day", "night"))
    assert isinstance(layer, PAIRS[kind])
    assert repr(layer) == f"Domain{repr(PAIRS[kind](3))[:-1]}, domains=('day', 'night'))"


def test_resetting_forgets_the_statistics_of_all_domains():
    layer = DomainBatchNorm1d(3, domains=TIMES)
    for name in TIMES:
        with domain(layer, name):
            layer(torch.randn(8, 3))
    with domain(layer, "dusk"):  # whatever is chosen
        layer.reset_parameters()
    assert_same_statistics(layer, dict.fromkeys(TIMES, nn.BatchNorm1d(3)))


def test_resetting_begins_the_weights_and_biases_of_all_domains_anew():
    layer = each(bias=False)
    assert [name for name, _ in layer.named_parameters()] == [
        "weight",
        "weight_night",
        "weight_dusk",
    ]
    with domain(layer, "dusk"):
        layer.reset_parameters()
    assert all(torch.equal(p, torch.ones(3)) for p in layer.parameters())


@pytest.mark.parametrize("affine", ["all", None])
def test_other_words_for_affine_are_refused(affine):
    with pytest.raises(ValueError, match=r"`affine` is ('all'|None): pass True for a weight"):
        DomainBatchNorm1d(3, domains=TIMES, affine=affine)


def test_moving_and_casting_take_all_domains_along():
    layer = DomainBatchNorm1d(3, domains=TIMES, device="meta", dtype=torch.float64)
    layer = layer.to_empty(device="cpu").float()
    layer.reset_parameters()
    assert {b.dtype for n, b in layer.named_buffers() if "running" in n} == {torch.float32}
    assert_same_statistics(layer, dict.fromkeys(TIMES, nn.BatchNorm1d(3)))


def test_half_precision_and_autocast_keep_float32_state():
    model = nn.Sequential(nn.Linear(3, 3), DomainBatchNorm1d(3, domains=TIMES))
    with torch.autocast("cpu", dtype=torch.bfloat16), domain(model, "night"):
        y = model(torch.randn(8, 3))
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert model[1].running_mean_night.dtype == torch.float32
    assert model[1].num_batches_tracked_night.item() == 1


@pytest.mark.parametrize("affine", [True, "each"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_layers_compile_as_one_graph_for_each_domain(backend, affine):
    torch.compiler.reset()
    layer = DomainBatchNorm1d(3, domains=TIMES, activation="relu", affine=affine)
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for name in ("day", "night", "day", "night"):
        for training in (True, False):
            x = torch.randn(8, 3)
            layer.train(training)
            eager.train(training)
            with domain(compiled, name), domain(eager, name):
                torch.testing.assert_close(compiled(x, x), eager(x, x))
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(value, eager.state_dict()[key])
