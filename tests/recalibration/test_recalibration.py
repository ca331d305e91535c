import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import bnkit
from bnkit.layers.accumulated import AccumulatedBatchNorm2d
from bnkit.layers.domains import DomainBatchNorm2d, domain
from bnkit.layers.frozen import FrozenBatchNorm2d
from bnkit.layers.ghost import GhostBatchNorm2d
from bnkit.layers.masked import MaskedBatchNorm1d
from bnkit.layers.recurrent import BatchNormLSTM
from bnkit.layers.renorm import BatchRenorm2d
from bnkit.layers.sync import SyncBatchNorm2d
from bnkit.moments import Moments
from bnkit.recalibration import plan_recalibration, recalibrate, recalibrate_
from cases import seeded
from counting import Waits, counted
from models import MODELS
from zoo.catalogue import conv, images
from zoo.checks import call, fingerprint, memory, random_state

ESTIMATORS = ("batch_statistics", "layer_by_layer")


def batch_norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


# Accuracy

FEATURES = 5
SHAPES = {"rows": (), "maps": (7, 6), "volumes": (3, 2, 4)}
KINDS = {"rows": nn.BatchNorm1d, "maps": nn.BatchNorm2d, "volumes": nn.BatchNorm3d}


def uneven(shape, *, mean, std=1.0):
    """Return mini-batches of 100 and of 2 rows, the small one from elsewhere."""
    generator = seeded(0)
    large, small = (
        torch.randn(rows, FEATURES, *shape, generator=generator, dtype=torch.float64)
        for rows in (100, 2)
    )
    return [(batch * std + mean).float() for batch in (large, small + 5)]


def pooled(batches):
    """Return the mean and unbiased variance of all values of each channel, in float64."""
    channels = torch.cat(batches).double().movedim(1, 0).flatten(1)
    return channels.mean(1), channels.var(1)


def half_an_ulp(values):
    values = values.float().abs()
    return (torch.nextafter(values, torch.tensor(torch.inf)) - values).double() / 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 1.0), (1e4, 1.0), (0.0, 1e-4)], ids=["plain", "mean 1e4", "std 1e-4"]
)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_statistics_are_those_of_all_values_and_those_of_update_bn_are_not(
    shape, mean, std, estimator
):
    batches = uneven(SHAPES[shape], mean=mean, std=std)
    true_mean, true_variance = pooled(batches)
    layer = KINDS[shape](FEATURES)

    ours = recalibrate(layer, batches, estimator=estimator)
    error = (ours.running_mean.double() - true_mean).abs()
    assert (error <= half_an_ulp(true_mean) + 1e-6 * true_variance.sqrt()).all()
    relative = (ours.running_var.double() / true_variance - 1).abs().max()
    assert relative <= 1e-6

    update_bn(batches, layer)  # which averages over mini-batches as if all were of one size
    theirs = (layer.running_mean.double() - true_mean).abs()
    assert (theirs > 1e3 * error).all()
    assert (layer.running_var.double() / true_variance - 1).abs().max() > 1e3 * relative


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(2, 12), min_size=1, max_size=5),
    shift=st.sampled_from([0.0, 1e4]),
    drift=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 2**32),
)
def test_any_cut_into_mini_batches_gives_the_same_statistics(sizes, shift, drift, seed):
    generator = seeded(seed)
    batches = [
        torch.randn(size, 3, 2, generator=generator, dtype=torch.float64) + shift + drift * place
        for place, size in enumerate(sizes)
    ]
    layer = recalibrate(nn.BatchNorm1d(3).double(), batches)
    for ours, expected in zip(
        (layer.running_mean, layer.running_var), pooled(batches), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


# Both estimators on a network, against forwards written by hand in float64


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 5)
        self.norm_a, self.norm_b = nn.BatchNorm1d(6), bnkit.BatchNorm1d(5, activation="relu")
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(5, 2)

    def forward(self, x):
        x = self.drop(self.norm_a(self.a(x)).relu())
        return self.head(self.norm_b(self.b(x)))


def net():
    torch.manual_seed(0)
    model = Net().double()
    with torch.no_grad():
        for layer in batch_norms(model):
            layer.weight.uniform_(0.5, 2)
            layer.bias.normal_()
    return model


def rows(*sizes, features=4):
    generator = seeded(1)
    return [
        torch.randn(size, features, generator=generator, dtype=torch.float64) * (1 + place) + place
        for place, size in enumerate(sizes)
    ]


BATCHES = rows(30, 8, 2)


def normalised(x, layer, mean, variance):
    return F.batch_norm(x, mean, variance, layer.weight, layer.bias, False, 0.0, layer.eps)


@torch.no_grad()
def by_batch_statistics(model):
    into_a = [model.a(x) for x in BATCHES]
    outputs = [
        normalised(x, model.norm_a, x.mean(0), x.var(0, correction=0)).relu() for x in into_a
    ]
    return torch.cat(into_a), torch.cat([model.b(y) for y in outputs])


@torch.no_grad()
def layer_by_layer(model):
    into_a = model.a(torch.cat(BATCHES))
    output = normalised(into_a, model.norm_a, into_a.mean(0), into_a.var(0)).relu()
    return into_a, model.b(output)


@pytest.mark.parametrize(
    ("estimator", "by_hand"),
    [("batch_statistics", by_batch_statistics), ("layer_by_layer", layer_by_layer)],
    ids=ESTIMATORS,
)
def test_each_estimator_measures_what_it_says(estimator, by_hand):
    model = net()
    after = recalibrate(model, BATCHES, estimator=estimator)
    for layer, values in zip((after.norm_a, after.norm_b), by_hand(model), strict=True):
        # What normalises lies in buffers meanwhile, here of float64.
        torch.testing.assert_close(layer.running_mean, values.mean(0), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer.running_var, values.var(0), rtol=1e-10, atol=1e-12)


def test_layer_by_layer_is_a_fixed_point_of_the_network_in_eval_mode():
    after = recalibrate(net(), BATCHES, estimator="layer_by_layer").eval()
    inputs = {}
    for name in ("norm_a", "norm_b"):
        layer = after.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    after(torch.cat(BATCHES))
    for name, values in inputs.items():
        layer = after.get_submodule(name)
        torch.testing.assert_close(layer.running_mean, values.mean(0), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer.running_var, values.var(0), rtol=1e-10, atol=1e-12)


def test_layer_by_layer_takes_single_rows():
    # In eval mode no layer needs the statistics of a mini-batch.
    singly = [x for batch in BATCHES for x in batch.split(1)]
    one, other = (
        recalibrate(net(), batches, estimator="layer_by_layer") for batches in (singly, BATCHES)
    )
    for ours, expected in zip(batch_norms(one), batch_norms(other), strict=True):
        torch.testing.assert_close(ours.running_mean, expected.running_mean)
        torch.testing.assert_close(ours.running_var, expected.running_var)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(3 * x + 1) + self.norm(x.tanh())


def test_inputs_of_a_layer_that_is_called_twice_are_pooled():
    after = recalibrate(Twice(), [x.float() for x in BATCHES])
    inputs = torch.cat([f for x in BATCHES for f in (3 * x.float() + 1, x.float().tanh())])
    torch.testing.assert_close(after.norm.running_mean, inputs.mean(0))
    torch.testing.assert_close(after.norm.running_var, inputs.var(0))
    assert after.norm.num_batches_tracked == 6


class Again(nn.Module):
    """What the layer returns is its second input."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.norm(x) * 2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_layer_that_reads_itself_normalises_by_the_mini_batch_meanwhile(estimator):
    x = BATCHES[0].float()
    after = recalibrate(Again(), [x], estimator=estimator)
    inputs = torch.cat([x, 2 * F.batch_norm(x, None, None, training=True)])
    torch.testing.assert_close(after.norm.running_mean, inputs.mean(0))
    torch.testing.assert_close(after.norm.running_var, inputs.var(0))


# What it costs, counted


def deep(depth):
    return nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(depth)))


def test_layer_by_layer_makes_a_pass_for_each_layer_and_stops_there():
    model, forwards = deep(4), []
    for place, layer in enumerate(model):
        layer.register_forward_hook(lambda *_, place=place: forwards.append(place))
    recalibrate(model, [x.float() for x in BATCHES], estimator="layer_by_layer")
    # The first pass goes to the end; of the others each stops before the layer that it measures.
    assert Counter(forwards) == {0: 4 * 3, 1: 3 * 3, 2: 2 * 3, 3: 1 * 3}


def test_layer_by_layer_measures_a_layer_at_a_time(monkeypatch):
    measured = []
    monkeypatch.setattr(Moments, "of", counted(Moments.of, measured))
    recalibrate(deep(5), [x.float() for x in BATCHES], estimator="layer_by_layer")
    assert len(measured) == (5 + 4) * len(BATCHES)


class Interleaved(nn.Module):
    """One layer runs before and behind another, in two branches."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.BatchNorm1d(4).double() for _ in range(3))

    def forward(self, x):
        return self.c(self.b(self.a(x)) + self.a(x.tanh()))


@torch.no_grad()
def test_layer_by_layer_stops_behind_the_last_call_of_a_layer():
    after = recalibrate(Interleaved(), BATCHES, estimator="layer_by_layer")
    x = torch.cat(BATCHES)
    into_a = torch.cat([x, x.tanh()])
    torch.testing.assert_close(after.a.running_mean, into_a.mean(0))
    torch.testing.assert_close(after.a.running_var, into_a.var(0))
    a = [normalised(y, after.a, into_a.mean(0), into_a.var(0)) for y in (x, x.tanh())]
    into_c = normalised(a[0], after.b, a[0].mean(0), a[0].var(0)) + a[1]
    torch.testing.assert_close(after.c.running_mean, into_c.mean(0))
    torch.testing.assert_close(after.c.running_var, into_c.var(0))


def waits(depth, batches):
    with Waits() as seen:
        plan_recalibration(deep(depth), [BATCHES[0].float()] * batches)
    return seen.count


def test_the_host_waits_once_for_a_mini_batch():
    assert waits(5, 9) - waits(5, 3) == 6


def test_writing_walks_over_the_model_once(monkeypatch):
    walks = []
    monkeypatch.setattr(nn.Module, "named_modules", counted(nn.Module.named_modules, walks))
    needed = []
    for depth in (5, 50):
        model = deep(depth)
        plan = plan_recalibration(model, BATCHES[0].float())
        walks.clear()
        plan.apply_(model)
        needed.append(walks.count(model))
    assert needed == [1, 1]


# Forms of batches


def test_every_form_of_batches_will_do():
    x = torch.randn(12, 4, generator=seeded(0))
    targets = torch.arange(12)
    forms = {
        "a tensor": (x, None),
        "a list of tensors": (list(x.split(5)), None),
        "a generator": ((part for part in x.split(5)), None),
        "a loader": (DataLoader(TensorDataset(x, targets), 5), None),
        "a dict": ({"input": x, "labels": targets}, None),
        "inputs": ([{"image": x}], lambda batch: ((batch["image"],), {})),
    }
    for name, (batches, inputs) in forms.items():
        layer = recalibrate(nn.BatchNorm1d(4), batches, inputs=inputs)
        torch.testing.assert_close(layer.running_mean, x.mean(0), msg=name)
        torch.testing.assert_close(layer.running_var, x.var(0), msg=name)


def test_the_number_of_mini_batches_is_tracked():
    model = net()
    model(BATCHES[0])
    assert [n.num_batches_tracked.item() for n in batch_norms(recalibrate(model, BATCHES))] == [
        3,
        3,
    ]


def test_a_cumulative_average_goes_on_from_the_mini_batches_that_were_measured():
    x = torch.randn(40, 3, generator=seeded(0))
    layer = recalibrate(nn.BatchNorm1d(3, momentum=None), x[:30].split(10)).train()
    layer(x[30:])
    torch.testing.assert_close(layer.running_mean, x.mean(0))


def test_buffers_are_filled_and_not_replaced():
    model = net()
    before = [(b.data_ptr(), id(b)) for b in model.buffers()]
    recalibrate_(model, BATCHES)
    assert [(b.data_ptr(), id(b)) for b in model.buffers()] == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_models_of_every_dtype_are_measured_in_float64(dtype):
    x = (torch.randn(50, 3, generator=seeded(0)) + 3).to(dtype)
    layer = recalibrate(nn.BatchNorm1d(3).to(dtype), x.split(20))
    mean, variance = pooled(list(x.split(20)))
    torch.testing.assert_close(layer.running_mean, mean.to(dtype), rtol=1e-14, atol=0)
    torch.testing.assert_close(layer.running_var, variance.to(dtype), rtol=1e-14, atol=0)


# What is left alone


def test_frozen_layers_are_left_alone_listed_and_normalise_by_what_they_have():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.BatchNorm2d(4, momentum=0.0), nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval()),
        *(nn.BatchNorm2d(4, track_running_stats=False), FrozenBatchNorm2d(4), nn.BatchNorm2d(4)),
        nn.BatchNorm2d(4),
    )
    model[6].track_running_stats = False
    model[0].running_mean.fill_(3.0)
    model[2].running_var.fill_(4.0)
    before = copy.deepcopy(model.state_dict())
    report = recalibrate_(model, images(), where=lambda path, _: path != "5")
    assert report.left_alone == {
        "0": "frozen: its momentum is 0",
        "2": "frozen: it is in eval mode inside a model in training mode",
        "3": "it has no running statistics: even in eval mode it uses those of the mini-batch",
        "4": "frozen: it is a FrozenBatchNorm2d",
        "5": "`where` did not choose it",
        "6": "frozen: its track_running_stats is False",
    }
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    expected = (images().mean((0, 2, 3)) - 3) / (1 + model[0].eps) ** 0.5
    torch.testing.assert_close(model[1].running_mean, expected)


def test_a_model_that_is_all_in_eval_mode_is_not_frozen():
    model = net().eval()
    report = recalibrate_(model, BATCHES)
    assert [shift.layer for shift in report.layers] == ["norm_a", "norm_b.norm"]


def test_a_layer_that_does_not_run_is_listed():
    model = net()
    model.spare = nn.BatchNorm1d(3)
    report = recalibrate_(model, BATCHES)
    assert report.left_alone == {"spare": "it did not run on these mini-batches"}
    assert torch.equal(model.spare.running_var, torch.ones(3))


def test_statistics_for_each_time_step_are_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(3), BatchNormLSTM(4, 2, max_steps=3))
    report = recalibrate_(model, images()[..., 0, :4].transpose(1, 2)[:, :3])
    assert [shift.layer for shift in report.layers] == ["0"]
    assert all("statistics for each time step" in why for why in report.left_alone.values())
    assert len(report.left_alone) == 3


def test_masked_layers_are_left_alone():
    # Padding would enter the statistics.
    model = nn.Sequential(nn.BatchNorm1d(4), MaskedBatchNorm1d(4))
    report = recalibrate_(model, BATCHES[0].float())
    assert report.left_alone["1"].startswith("it is masked: what it leaves out")


# Kinds


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(4),
        nn.SyncBatchNorm(4),
        bnkit.BatchNorm2d(4, activation="relu"),
        GhostBatchNorm2d(4, virtual_batch_size=2),
        BatchRenorm2d(4),
        SyncBatchNorm2d(4),
        AccumulatedBatchNorm2d(4, micro_batches=2),
        DomainBatchNorm2d(4, domains=("day", "night")),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("training", [True, False])
def test_kinds_of_batch_norm_get_the_statistics_of_their_inputs(layer, training):
    after = recalibrate(nn.Sequential(layer, nn.ReLU()).train(training), images().split(3))[0]
    torch.testing.assert_close(after.running_mean, images().mean((0, 2, 3)))
    torch.testing.assert_close(after.running_var, images().transpose(0, 1).flatten(1).var(1))


def test_the_chosen_domain_is_recalibrated():
    model = nn.Sequential(DomainBatchNorm2d(4, domains=("day", "night")))
    with domain(model, "night"):
        after = recalibrate(model, images())
    torch.testing.assert_close(after[0].running_mean_night, images().mean((0, 2, 3)))
    assert torch.equal(after.state_dict()["0.running_mean"], torch.zeros(4))  # that of the day


def test_the_twin_of_add_is_recalibrated():
    twin = bnkit.add(nn.Sequential(conv(), nn.ReLU(), conv()), images())
    after = recalibrate(twin, images().split(3))
    expected = F.conv2d(images(), twin[0].weight, padding=1)
    torch.testing.assert_close(after[0].batchnorm.running_mean, expected.mean((0, 2, 3)))


NORMALISED = [
    model
    for model in MODELS
    if any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
        for m in model.seeded().modules()
    )
]


@pytest.mark.parametrize("model", NORMALISED, ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_awkward_models_are_recalibrated_and_stay_as_they_are(model, estimator):
    original, batches = model.seeded(), [(model.example(),)]
    before, state = fingerprint(original), random_state()
    after = recalibrate(original, batches, estimator=estimator)
    assert fingerprint(original) == before
    assert random_state() == state
    assert memory(original).isdisjoint(memory(after))
    report = plan_recalibration(after, batches, estimator=estimator)
    assert all(shift.mean_shift < 1e-3 for shift in report.layers)
    assert all(output.isfinite().all() for output in call(after.eval(), model.example()))


# What stays, also after an error


class BrokenError(Exception):
    """Raised by loaders, and nowhere else."""


def breaking_after(count):
    yield from BATCHES[:count]
    raise BrokenError


class AllDraw(nn.Module):
    """Draws in eval mode too, and counts."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("forwards", torch.zeros(()))

    def forward(self, x):
        self.forwards += 1
        return self.norm(x + torch.randn(4))


@pytest.mark.parametrize("verb", [recalibrate, recalibrate_, plan_recalibration])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_loader_that_breaks_leaves_everything_as_it_was(verb, count):
    model = net()
    model.norm_a.eval()
    model.norm_a.register_forward_hook(lambda *_: None)
    model(BATCHES[0]).sum().backward()
    before, state = fingerprint(model), random_state()
    with pytest.raises(BrokenError) as caught:
        verb(model, breaking_after(count))
    assert caught.value.__cause__ is None
    assert fingerprint(model) == before
    assert random_state() == state


def test_an_error_of_the_model_leaves_it_as_it_was():
    model = AllDraw()
    before, state = fingerprint(model), random_state()
    with pytest.raises(RuntimeError, match="size"):
        recalibrate_(model, [torch.randn(4, 4, generator=seeded(0)), torch.zeros(4, 5)])
    assert fingerprint(model) == before
    assert random_state() == state


def test_in_place_only_statistics_change():
    model = AllDraw()
    model(torch.zeros(4, 4)).sum().backward()
    before, state = fingerprint(model), random_state()
    report = recalibrate_(model, torch.randn(8, 4, generator=seeded(0)))
    assert random_state() == state
    assert model.forwards == 1
    assert not torch.equal(model.norm.running_mean, torch.zeros(4))
    report.revert_(model)
    model.norm.num_batches_tracked.fill_(1)
    without_versions = [
        [[(name, facts[0], facts[1], values) for name, _, facts, values in part] for part in f[1:]]
        for f in (before, fingerprint(model))
    ]
    assert without_versions[0] == without_versions[1]


def test_nothing_is_recorded_for_gradients():
    after = recalibrate(net(), [x.requires_grad_() for x in rows(8)])
    assert not any(b.requires_grad for b in after.buffers())


def test_it_works_inside_of_inference_mode():
    with torch.inference_mode():
        after = recalibrate(net(), BATCHES)
    expected = recalibrate(net(), BATCHES)
    assert torch.equal(after.norm_b.running_var, expected.norm_b.running_var)
    after(BATCHES[0]).sum().backward()


# Wrappers


def test_models_in_wrappers_are_recalibrated_in_place():
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend="eager")):
        model, expected = net(), recalibrate(net(), BATCHES)
        wrapped = wrap(model)
        report = recalibrate_(wrapped, BATCHES)
        assert torch.equal(model.norm_b.running_mean, expected.norm_b.running_mean)
        report.revert_(wrapped)
        assert torch.equal(model.norm_b.running_mean, torch.zeros(5))


def test_models_in_wrappers_are_not_copied():
    with pytest.raises(TypeError, match=r"the model is a DataParallel: pass its \.module"):
        recalibrate(nn.DataParallel(net()), breaking_after(0))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("verb", [recalibrate, recalibrate_])
def test_torchscript_is_refused(verb):
    scripted = torch.jit.script(nn.BatchNorm1d(4))
    with pytest.raises(TypeError, match="is TorchScript"):
        verb(scripted, BATCHES)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": []}, r"`batches` gave no mini-batch: the list is empty"),
        ({"batches": iter([])}, r"gave no mini-batch: it is a list_iterator, which is used up"),
        (
            {"batches": [BATCHES[0], BATCHES[0][:1]]},
            r"^mini-batch 2 gives layer 'norm_a' 1 value per channel, .*drop_last=True",
        ),
        (
            {"batches": [BATCHES[0], BATCHES[0] / 0]},
            r"^mini-batch 2 gives layer 'norm_a' values that are not finite .*leave it out of `bat",
        ),
        (
            {"batches": BATCHES[0][:1], "estimator": "layer_by_layer"},
            r"^all of `batches` give layer 'norm_a' 1 value per channel, which has no variance",
        ),
        (
            {"batches": (x for x in BATCHES), "estimator": "layer_by_layer"},
            r"`batches` is a generator, which is used up after one pass, and this estimator makes",
        ),
        (
            {"batches": BATCHES, "estimator": "exact"},
            r"`estimator` is 'exact': choose from \('batch_statistics', 'layer_by_layer'\)",
        ),
        (
            {"batches": BATCHES, "where": lambda *_: False},
            r"there is nothing to measure: norm_a: `where` did not choose it; norm_b.norm: `where`",
        ),
        ({"batches": [BATCHES[0][:0]]}, r"none of the batch norms ran on `batches` with values"),
    ],
    ids=[
        "no mini-batch",
        "used up",
        "one value per channel",
        "not finite",
        "one value in all",
        "an iterator, several passes",
        "unknown estimator",
        "nothing chosen",
        "only empty mini-batches",
    ],
)
def test_bad_input_is_one_clear_error_and_changes_nothing(options, message):
    model = net()
    before = fingerprint(model)
    batches = options.pop("batches")
    with pytest.raises(ValueError, match=message):
        recalibrate_(model, batches, **options)
    assert fingerprint(model) == before


def test_a_model_without_batch_norms_is_refused():
    message = r"there is nothing to measure: Sequential has no batch norm"
    with pytest.raises(ValueError, match=message):
        recalibrate(nn.Sequential(nn.Linear(2, 2)), BATCHES)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="`model` is a list: pass a torch"):
        recalibrate([nn.BatchNorm1d(2)], BATCHES)


def test_batch_norms_of_other_libraries_are_named():
    class IterativeBatchNorm(nn.Module):
        pass

    with pytest.raises(ValueError, match="measure: the model: IterativeBatchNorm is of another"):
        recalibrate(IterativeBatchNorm(), BATCHES)


@pytest.mark.parametrize("bad", [torch.zeros(4, 5), torch.zeros(4)], ids=["channels", "dimensions"])
def test_inputs_of_wrong_shapes_get_the_error_of_the_layer(bad):
    with pytest.raises((RuntimeError, ValueError), match=r"running_mean|expected 2D"):
        recalibrate(nn.BatchNorm1d(4), [bad])


def test_empty_mini_batches_among_others_change_nothing():
    some, all_of_them = [BATCHES[0]], [BATCHES[0][:0], BATCHES[0], BATCHES[0][:0]]
    one, other = recalibrate(net(), some), recalibrate(net(), all_of_them)
    assert torch.equal(one.norm_a.running_var, other.norm_a.running_var)
