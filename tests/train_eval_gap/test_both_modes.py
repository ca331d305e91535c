import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnkit
from bnkit import ExampleError, dataflow
from bnkit.layers.domains import DomainBatchNorm1d, domain
from bnkit.layers.frozen import FrozenBatchNorm1d
from bnkit.layers.ghost import GhostBatchNorm1d
from bnkit.layers.masked import MaskedBatchNorm1d
from bnkit.norms import NO_STATISTICS
from bnkit.train_eval_gap import both_modes, explain_gap
from cases import seeded
from models import MODELS
from zoo.catalogue import dense, images, vectors
from zoo.checks import fingerprint, random_state


def rows(count=512, features=4, *, shift=0.0):
    return torch.randn(count, features, generator=seeded(0)) + shift


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(dense(), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout()),
        *(dense(), bnkit.BatchNorm1d(4, activation="relu"), nn.Dropout()),
        *(dense(), nn.BatchNorm1d(4, affine=False), dense(4, 2)),
    )


def trained(model, batch):
    """Let the running statistics become those of the mini-batch, with dropout off."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.momentum = 1.0
        if isinstance(layer, nn.Dropout):
            layer.eval()
    model(batch)
    return model.train()


def diverging(gap):
    return [layer.layer for layer in gap.diverging]


# What is found


def test_where_running_statistics_are_those_of_the_mini_batch_nothing_diverges():
    gap = explain_gap(trained(network(), rows()), rows())
    assert gap.diverging == ()
    assert gap.rows == 512
    assert gap.output_difference < 0.01  # Bessel's correction of 512 rows
    for layer in gap.layers:
        assert layer.mean_shift < 1e-5
        assert layer.least_variance_ratio == pytest.approx(511 / 512, rel=1e-4)
        assert layer.own_difference < 0.01


@pytest.mark.parametrize("path", ["1", "5.norm", "8"])
def test_the_layer_with_wrong_statistics_is_named_and_those_behind_it_are_not(path):
    model = trained(network(), rows())
    layer = model.get_submodule(path)
    layer.running_mean += 2 * layer.running_var.sqrt()
    gap = explain_gap(model, rows())
    assert diverging(gap) == [path]
    assert gap.diverging[0].mean_shift == pytest.approx(2, rel=0.01)
    differences = {found.layer: found.difference for found in gap.layers}
    assert all((other >= path) == (d > 0.1) for other, d in differences.items())
    assert gap.output_difference > 0.01


def test_the_layers_come_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.last(self.first(x))

    gap = explain_gap(Backwards(), rows(shift=3))
    assert [layer.layer for layer in gap.layers] == ["first", "last"]
    assert diverging(gap) == ["first"]  # which hands the last one what it expects


def test_numbers_of_one_layer_are_those_of_its_definition():
    layer = nn.BatchNorm1d(2, eps=0.5)
    layer.running_mean[:], layer.running_var[:] = torch.tensor([1.0, 0]), torch.tensor([3.5, 0.5])
    layer.weight.data, layer.bias.data = torch.tensor([2.0, 1.0]), torch.tensor([0.0, 3.0])
    batch = torch.tensor([[4.0, 1.0], [6.0, 1.0]])  # means 5 and 1, variances 1 and 0
    (found,) = explain_gap(layer, batch).layers
    assert (found.layer, found.kind) == ("", "BatchNorm1d")
    assert found.mean_shift == pytest.approx(2)  # (5 − 1) / √4
    assert found.least_variance_ratio == pytest.approx(0.375)  # (1 + ½) / 4
    assert found.largest_variance_ratio == pytest.approx(0.5)  # ½ / 1
    with torch.no_grad():
        by_running = F.batch_norm(batch, *layer_statistics(layer), training=False, eps=0.5)
        by_batch = F.batch_norm(batch, None, None, layer.weight, layer.bias, training=True, eps=0.5)
    expected = ((by_running - by_batch).norm() / by_batch.norm()).item()
    assert found.own_difference == pytest.approx(expected)
    assert found.difference == pytest.approx(expected)
    # s² is 2 / 2 and 0; Σ γ²v/(v+ε) + β² is 4 · 2/3 + 9
    assert found.chance == pytest.approx(math.sqrt(1.5 * 4 * (1 / 1.5) / (4 * 2 / 3 + 9)))


def layer_statistics(layer):
    return layer.running_mean, layer.running_var, layer.weight, layer.bias


@pytest.mark.parametrize(
    "sample",
    [
        lambda i: torch.randn(32, 6, generator=seeded(i)),
        lambda i: torch.randn(32, 6, 1, generator=seeded(i)).expand(-1, -1, 9),
        lambda i: torch.randn(8, 6, 30, generator=seeded(i)),
    ],
    ids=["rows", "rows whose values are all alike", "values that are independent"],
)
def test_chance_is_what_perfect_statistics_give_on_average(sample):
    layer = nn.BatchNorm1d(6)  # mean 0 and variance 1: those of the population
    found = [explain_gap(layer, sample(i)).layers[0] for i in range(40)]
    own = math.sqrt(sum(f.own_difference**2 for f in found) / 40)
    chance = math.sqrt(sum(f.chance**2 for f in found) / 40)
    assert chance == pytest.approx(own, rel=0.25)
    assert not any(f.diverges(0.0) for f in found)


def test_of_one_row_chance_makes_anything():
    gap = explain_gap(nn.BatchNorm2d(4), images()[:1] + 100)
    assert gap.layers[0].chance == math.inf
    assert gap.diverging == ()


def test_a_shared_layer_is_measured_over_all_its_calls():
    norm = nn.BatchNorm1d(1)
    batch = torch.tensor([[0.0], [2.0]])
    (found,) = explain_gap(nn.Sequential(norm, nn.Tanh(), norm), batch).layers
    assert found.layer == "0"
    gap = explain_gap(nn.Sequential(norm, norm), batch)
    assert gap.layers[0].mean_shift == pytest.approx(0.5, rel=1e-4)  # of 0, 2, −1 and 1


def test_features_that_a_dead_layer_hides_make_no_difference():
    layer = nn.BatchNorm1d(4)
    nn.init.zeros_(layer.weight)
    gap = explain_gap(layer, rows(shift=9))
    assert (gap.layers[0].own_difference, gap.output_difference, gap.diverging) == (0, 0, ())
    assert gap.layers[0].mean_shift > 8


def test_poisoned_statistics_diverge():
    model = network()
    model[5].running_var[2] = torch.nan
    gap = explain_gap(model, rows())
    assert "5.norm" in diverging(gap)
    assert math.isnan(gap.output_difference)
    assert gap.to_json()["output_difference"] is None
    assert "'5.norm'" in str(gap)


def test_statistics_far_from_zero_lose_no_digits():
    layer = nn.BatchNorm1d(4)
    batch = rows(shift=1e4)
    layer.running_mean.fill_(1e4)
    (found,) = explain_gap(layer, batch).layers
    assert found.mean_shift == pytest.approx(
        (batch.double().mean(0) - 1e4).abs().max().item(), rel=1e-3
    )


# Which layers


@pytest.mark.parametrize(
    ("freeze", "mode", "why"),
    [
        (lambda n: n.eval(), True, "it is in eval mode inside a model in training mode"),
        (lambda _: FrozenBatchNorm1d(4), False, "it is a FrozenBatchNorm1d"),
    ],
    ids=["in eval mode", "by its class"],
)
def test_frozen_layers_take_their_running_statistics_in_both_runs(freeze, mode, why):
    model = nn.Sequential(freeze(nn.BatchNorm1d(4)), nn.BatchNorm1d(4)).requires_grad_(mode)
    gap = explain_gap(model, rows(shift=3))
    assert gap.left_out == {"0": f"frozen: {why}"}
    assert diverging(gap) == ["1"]  # the shift passes the frozen one


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4, momentum=0.0),
        nn.SyncBatchNorm(4),
        GhostBatchNorm1d(4, virtual_batch_size=64),
    ],
    ids=["momentum 0, which freezes nothing in training", "torch's sync", "ghost"],
)
def test_other_kinds_are_compared(layer):
    assert diverging(explain_gap(layer, rows(shift=3))) == [""]


def test_a_layer_that_lost_its_flag_but_not_its_statistics_is_compared():
    layer = nn.BatchNorm1d(4)
    layer.track_running_stats = False  # as fine-tuning callbacks do it
    assert diverging(explain_gap(layer, rows(shift=3))) == [""]


def test_the_chosen_domain_is_compared():
    layer = DomainBatchNorm1d(4, domains=("day", "night"))
    layer.running_mean_night.fill_(3.0)
    assert diverging(explain_gap(layer, rows(shift=3))) == [""]
    with domain(layer, "night"):
        assert diverging(explain_gap(layer, rows(shift=3))) == []


class Odd(nn.Module):
    """Batch norms that cannot be compared, beside one that can."""

    def __init__(self):
        super().__init__()
        self.plain = nn.BatchNorm1d(4)
        self.without = nn.BatchNorm1d(4, track_running_stats=False)
        self.masked = MaskedBatchNorm1d(4)
        self.idle = nn.BatchNorm1d(4)
        self.BatchNorm = type("TheirBatchNorm", (nn.Identity,), {})()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        x = F.batch_norm(self.BatchNorm(x), self.mean, self.var, training=self.training)
        return self.masked(self.without(self.plain(x)))


def test_what_cannot_be_compared_is_listed_with_its_reason():
    gap = explain_gap(Odd(), rows())
    assert [layer.layer for layer in gap.layers] == ["plain"]
    assert gap.left_out == {
        "without": NO_STATISTICS,
        "masked": "it is masked: what it leaves out of its input cannot be seen from outside",
        "BatchNorm": "TheirBatchNorm is of another library: what its buffers mean is unknown",
        "batch_norm()": "a function: in which mode it works cannot be seen",
        "idle": "it did not run",
    }


# How it is called


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, scale=None, *, mask=None):
        y = self.norm(x * scale)
        return {"y": y, "best": y.argmax(1), "masked": y.masked_fill(mask > 0, -math.inf)}


@pytest.mark.parametrize(
    ("batch", "inputs"),
    [
        ({"x": rows(), "scale": 2 * torch.ones(4), "mask": rows(), "label": None}, None),
        (rows(), lambda x: ((x, 2.0), {"mask": x})),
    ],
    ids=["as a dict", "by `inputs`"],
)
def test_models_of_several_inputs_and_outputs(batch, inputs):
    gap = explain_gap(Two(), batch, inputs=inputs)
    assert gap.layers[0].largest_variance_ratio == pytest.approx(4, rel=0.2)
    # of outputs twice too large; equal infinities differ by nothing, and indices do not count
    assert gap.output_difference == pytest.approx(1, rel=0.1)


def test_a_mini_batch_with_its_targets_will_do():
    assert explain_gap(network(), (rows(), torch.zeros(512))).rows == 512


def test_a_threshold_moves_what_is_called_diverging():
    batch = rows(shift=0.5)
    assert diverging(explain_gap(nn.BatchNorm1d(4), batch)) == [""]
    assert diverging(explain_gap(nn.BatchNorm1d(4), batch, threshold=1)) == []


def test_models_in_half_precision_are_compared():
    layer = nn.Sequential(nn.BatchNorm2d(4)).bfloat16()
    gap = explain_gap(layer, images().bfloat16() + 3)
    assert gap.layers[0].mean_shift == pytest.approx(3, rel=0.2)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_every_model_stays_as_it_is(model):
    subject, example = model.seeded(), model.example()
    kind = type(example)
    inputs = {tuple: lambda e: (e, {}), dict: lambda e: ((), e)}.get(kind)  # as examples are read
    before, state = fingerprint(subject), random_state()
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in subject.modules()):
        assert explain_gap(subject, example, inputs=inputs).layers
    else:
        with pytest.raises(ValueError, match="there is no gap to explain: "):
            explain_gap(subject, example, inputs=inputs)
    assert fingerprint(subject) == before
    assert random_state() == state


# Errors


@pytest.mark.parametrize(
    ("build", "batch", "error", "message"),
    [
        (dense, vectors(), ValueError, "there is no gap to explain: Linear has no batch norm"),
        (
            lambda: FrozenBatchNorm1d(4),
            vectors(),
            ValueError,
            "there is no gap to explain: the model: frozen: it is a FrozenBatchNorm1d",
        ),
        (
            network,
            vectors()[:1],
            ValueError,
            r"^`batch` gives layer '1' one value per channel, which has no variance: take a larger",
        ),
        (network, vectors() * math.nan, ValueError, "gives layer '1' values that are not finite"),
        (
            network,
            torch.zeros(6, 5),
            ExampleError,
            r"the model fails on `batch` of shape \(6, 5\) in layer '0' \(Linear\): RuntimeError",
        ),
        (network, [], TypeError, "is an empty list"),
        (lambda: nn.DataParallel(network()), vectors(), TypeError, "is a DataParallel: pass its"),
        (lambda: 5, vectors(), TypeError, "`model` is a int: pass a torch.nn.Module"),
    ],
    ids=[
        *("no batch norm", "only frozen", "one row", "not finite", "wrong shape", "no batch"),
        *("wrapped", "no module"),
    ],
)
def test_errors_say_what_is_wrong_and_leave_the_model(build, batch, error, message):
    model = build()
    before = fingerprint(model) if isinstance(model, nn.Module) else None
    state = random_state()
    with pytest.raises(error, match=message):
        explain_gap(model, batch)
    assert before is None or fingerprint(model) == before
    assert random_state() == state


def test_a_model_whose_batch_norms_do_not_run_is_refused():
    model = Odd()
    model.forward = lambda x: x
    with pytest.raises(ValueError, match=r"^none of the batch norms ran: 'plain', 'idle'$"):
        explain_gap(model, rows())


def test_arguments_given_in_both_ways_need_names():
    message = r"^`inputs` returned 1 positional and 1 keyword arguments, and the forward of Open"

    class Open(nn.Module):
        def forward(self):
            raise NotImplementedError

    with pytest.raises(TypeError, match=message):
        explain_gap(Open(), rows(), inputs=lambda x: ((x,), {"scale": 2}))


@pytest.mark.parametrize("threshold", [-0.1, math.nan, math.inf, "low"])
def test_a_threshold_that_is_none_is_refused(threshold):
    message = rf"^`threshold` is {threshold!r}: pass a number of at least 0, such as 0.1$"
    with pytest.raises(ValueError, match=message):
        explain_gap(network(), vectors(), threshold=threshold)


def test_a_copy_that_writes_into_the_original_is_refused():
    class Shared:
        def __init__(self, layer):
            self.layer = layer

        def __deepcopy__(self, memo):
            return self

    model = nn.Sequential(dense(), nn.BatchNorm1d(4))
    model.held = Shared(model[1])
    model.register_forward_hook(counts_in_what_it_holds)
    with pytest.raises(ValueError, match=r"^a copy of the model \(Sequential\) writes into the"):
        explain_gap(model, rows())


def test_one_copy_of_the_model_lives_at_a_time(monkeypatch):
    copies = []

    def duplicate(model):
        assert [copy for copy in copies if copy() is not None] == []
        made = dataflow.duplicate(model)
        copies.append(weakref.ref(made))
        return made

    monkeypatch.setattr(both_modes, "duplicate", duplicate)
    explain_gap(network(), rows())
    assert len(copies) == 2


def counts_in_what_it_holds(module, _args, _output):
    module.held.layer.num_batches_tracked.add_(1)
