"""Sick and healthy states of batch norms: two sick models for each rule, one of them disguised."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnkit
from bnkit.diagnosis.diagnosing import diagnose
from bnkit.diagnosis.gathering import gather
from bnkit.diagnosis.rules.noise import effective_values
from bnkit.diagnosis.rules.reading import readings
from bnkit.diagnosis.rules.staleness import ERRORS, distance_in_errors
from bnkit.diagnosis.rules.table import KINDS
from bnkit.layers.domains import DomainBatchNorm1d
from bnkit.layers.frozen import FrozenBatchNorm1d
from bnkit.layers.per_step import PerStepBatchNorm1d
from cases import seeded
from reloading import reloaded
from zoo.checks import fingerprint, random_state

CHECKS = {rule.slug: rule.check for rule in KINDS["state"]}


def rows(count=64, *, batches=8, features=4, shift=2.0, scale=3.0):
    """Return mini-batches of independent rows, far from mean 0 and variance 1."""
    generator = seeded(0)
    noise = (torch.randn(count, features, generator=generator) for _ in range(batches))
    return [values * scale + shift for values in noise]


class Functional(nn.Module):
    """Batch norm as a function, with tensors that the model holds under names of its own."""

    def __init__(self, *, eps=1e-5, momentum=0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.gamma = nn.Parameter(torch.ones(4))
        self.register_buffer("mu", torch.zeros(4))
        self.register_buffer("sigma2", torch.ones(4))

    def forward(self, x):
        running = self.mu, self.sigma2
        return F.batch_norm(
            x, *running, self.gamma, None, self.training, self.momentum, eps=self.eps
        )


class InTorchOrder(Functional):
    """The same by torch.batch_norm, whose arguments stand in another order."""

    def forward(self, x):
        return torch.batch_norm(
            x,
            self.gamma,
            None,
            self.mu,
            self.sigma2,
            self.training,
            self.momentum,
            self.eps,
            False,
        )


class Subclass(nn.BatchNorm1d):
    """A class of the user's own, with an activation inside."""

    def __init__(self, features, **options):
        super().__init__(features, **options)
        self.act = nn.Tanh()

    def forward(self, x):
        return self.act(super().forward(x))


class Foreign(nn.Module):
    """A frozen batch norm as other libraries have them: buffers only."""

    def __init__(self, features=4):
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((features,), float(value)))
        self.eps = 1e-5

    def forward(self, x):
        scale = self.weight / (self.running_var + self.eps).sqrt()
        return (x - self.running_mean) * scale + self.bias


ForeignFrozenBatchNorm = type("FrozenBatchNorm", (Foreign,), {})


def nested(layer):
    return nn.Sequential(nn.Identity(), nn.ModuleDict({"inner": nn.Identity()})["inner"], layer)


class Shared(nn.Module):
    """Two names for one layer, the second one below another module."""

    def __init__(self, layer):
        super().__init__()
        self.norm = layer
        self.again = nn.Sequential(layer)

    def forward(self, x):
        return self.again(x)


def warm(model, batches=None, *, momentum=None):
    """Return the model with the statistics of the mini-batches, trained as by an average."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d)]
    kept = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = momentum
    model.train()
    for batch in batches or rows():
        model(batch)
    for layer, value in zip(layers, kept, strict=True):
        layer.momentum = value
        layer.num_batches_tracked.fill_(1000)
    return model


def starting_at_zero(layer):
    nn.init.zeros_(layer.weight)
    return layer


def with_tensor(model, name, value):
    """Return the model with a value written into one of its tensors."""
    path, _, own = name.rpartition(".")
    with torch.no_grad():
        getattr(model.get_submodule(path), own).copy_(torch.as_tensor(value))
    return model


def with_attributes(model, path, **values):
    for name, value in values.items():
        setattr(model.get_submodule(path), name, value)
    return model


@dataclass(frozen=True)
class Sick:
    """A planted fault: the rule that must find it, where, and how bad it is."""

    why: str
    rule: str
    build: Callable[[], nn.Module]
    layer: str
    severity: str
    batches: Callable[[], Any] = rows
    fixed: bool = True
    measured: dict[str, Any] = field(default_factory=dict)
    same_in_eval: bool = False

    def __str__(self):
        return f"{self.rule}: {self.why}"


def batch_norm(**options):
    return nn.BatchNorm1d(4, **options)


def half(layer):
    return layer.to(torch.bfloat16)


def bfloat_rows():
    return [batch.bfloat16() for batch in rows()]


def small_rows():
    return rows(scale=1e-4, shift=0.0)


def of_insertion():
    """Return a batch norm as `bnkit.insert` makes it: γ is the standard deviation."""
    layer = warm(nn.Sequential(batch_norm()), rows(scale=1e3))
    return with_tensor(layer, "0.weight", (layer[0].running_var + 1e-5).sqrt())


SICK = (
    Sick(
        "in training mode it is information",
        "never-updated",
        lambda: nn.Sequential(batch_norm()),
        "0",
        "info",
        measured={"mini-batches tracked": 0},
    ),
    Sick(
        "in eval mode it is an error",
        "never-updated",
        lambda: nn.Sequential(batch_norm()).eval(),
        "0",
        "error",
    ),
    Sick(
        "a function with buffers of the model",
        "never-updated",
        lambda: nested(Functional()).eval(),
        "2",
        "error",
        fixed=False,
    ),
    Sick(
        "counted by momentum 0, which lets nothing in",
        "never-updated",
        lambda: with_tensor(nested(batch_norm(momentum=0.0)), "2.num_batches_tracked", 100).eval(),
        "2",
        "error",
        measured={"mini-batches tracked": 100},
    ),
    Sick(
        "frozen before it has learned anything",
        "never-updated",
        lambda: with_tensor(nested(FrozenBatchNorm1d(4)), "2.weight", 2.0),
        "2",
        "warning",
    ),
    Sick(
        "of another library, in buffers",
        "never-updated",
        lambda: with_tensor(nested(ForeignFrozenBatchNorm()), "2.bias", 2.0),
        "2",
        "warning",
    ),
    Sick(
        "one of two domains",
        "never-updated",
        lambda: warm(nn.Sequential(DomainBatchNorm1d(4, domains=("day", "night")))).eval(),
        "0",
        "warning",
        fixed=False,  # the mini-batches are those of the other domain
    ),
    Sick(
        "for each time step",
        "never-updated",
        lambda: bnkit.layers.BatchNormLSTM(4, 3, max_steps=5, batch_first=True).eval(),
        "batchnorm_c_l0",
        "error",
        batches=lambda: [batch.view(16, 4, 4) for batch in rows()],
        fixed=False,
    ),
    Sick(
        "of other data",
        "stale-statistics",
        lambda: warm(nn.Sequential(batch_norm()), rows(shift=9.0)).eval(),
        "0",
        "error",
    ),
    Sick(
        "a class of its own, in training, whose weights were replaced",
        "stale-statistics",
        lambda: nested(warm(Subclass(4), rows(shift=-4.0))),
        "2",
        "warning",
    ),
    Sick(
        "under two names",
        "stale-statistics",
        lambda: Shared(warm(batch_norm(), rows(scale=6.0))).eval(),
        "norm",
        "warning",
    ),
    Sick(
        "without affine parameters",
        "stale-statistics",
        lambda: nested(warm(bnkit.BatchNorm1d(4, affine=False), rows(shift=0.0))).eval(),
        "2",
        "warning",
    ),
    Sick(
        "a NaN in the running mean",
        "non-finite",
        lambda: with_tensor(
            warm(nn.Sequential(batch_norm())), "0.running_mean", [0, math.nan, 0, 0]
        ),
        "0",
        "error",
        measured={"running_mean": 1},
    ),
    Sick(
        "a negative variance, of one domain",
        "non-finite",
        lambda: with_tensor(
            nested(DomainBatchNorm1d(4, domains=("day", "night"))), "2.running_var_night", -1.0
        ),
        "2",
        "error",
        measured={"running_var": 4},
        fixed=False,
    ),
    Sick(
        "an infinite γ of a function",
        "non-finite",
        lambda: with_tensor(Functional(), "gamma", [1, math.inf, 1, 1]),
        "",
        "error",
        measured={"weight": 1},
        fixed=False,
    ),
    Sick(
        "a mini-batch that the guard kept out",
        "non-finite",
        lambda: with_attributes(
            nn.Sequential(bnkit.BatchNorm1d(4)), "0", non_finite_batches=torch.tensor(3)
        ),
        "0",
        "warning",
        measured={"mini-batches kept out": 3},
        fixed=False,
    ),
    Sick(
        "data with a NaN, found where it comes in",
        "non-finite",
        lambda: nn.Sequential(batch_norm(), nn.ReLU(), batch_norm()),
        "0",
        "error",
        batches=lambda: [torch.full((8, 4), math.nan)],
        measured={"layers that are given such values": 2},
        fixed=False,
    ),
    Sick(
        "of Keras",
        "momentum-convention",
        lambda: warm(nn.Sequential(batch_norm(momentum=0.99))),
        "0",
        "warning",
        measured={"momentum": 0.99},  # its statistics are measured anew, so eval mode moves
    ),
    Sick(
        "of bnkit's own layer, nested",
        "momentum-convention",
        lambda: nested(bnkit.BatchNorm1d(4, momentum=0.9)),
        "2",
        "warning",
        same_in_eval=True,
    ),
    Sick(
        "1, of which nothing would be left",
        "momentum-convention",
        lambda: nested(batch_norm(momentum=1.0)),
        "2",
        "warning",
        same_in_eval=True,
    ),
    Sick(
        "an argument of torch.batch_norm",
        "momentum-convention",
        lambda: nested(InTorchOrder(momentum=0.999)),
        "2",
        "warning",
        measured={"momentum": 0.999},
        fixed=False,
    ),
    Sick(
        "after five mini-batches",
        "warming-up",
        lambda: young(nn.Sequential(batch_norm()), batches=5).eval(),
        "0",
        "warning",
        measured={"initial share": pytest.approx(0.9**5)},
    ),
    Sick(
        "a small momentum, in training",
        "warming-up",
        lambda: young(nested(Subclass(4, momentum=1e-3)), batches=100),
        "2",
        "info",
        measured={"initial share": pytest.approx(0.999**100)},
    ),
    Sick(
        "an average over all, of which nothing is counted",
        "warming-up",
        lambda: with_tensor(
            warm(nn.Sequential(batch_norm(momentum=None))), "0.num_batches_tracked", 0
        ),
        "0",
        "warning",
        measured={"share of the next mini-batch": 1.0},
    ),
    Sick(
        "the whole model in bfloat16",
        "half-precision-statistics",
        lambda: half(warm(nn.Sequential(batch_norm()))),
        "0",
        "warning",
        batches=bfloat_rows,
    ),
    Sick(
        "only the buffers, of a class of its own, for inference",
        "half-precision-statistics",
        lambda: half_buffers(warm(nested(Subclass(4)))).eval(),
        "2",
        "info",
        batches=bfloat_rows,
    ),
    Sick(
        "inputs far below eps",
        "large-eps",
        lambda: warm(nn.Sequential(batch_norm()), small_rows()),
        "0",
        "warning",
        batches=small_rows,
        same_in_eval=True,
    ),
    Sick(
        "momentum in its place",
        "large-eps",
        lambda: warm(nested(Subclass(4, eps=0.8))),
        "2",
        "warning",
        measured={"eps": 0.8},
        same_in_eval=True,
    ),
    Sick(
        "Keras's own is information",
        "large-eps",
        lambda: nested(bnkit.BatchNorm1d(4, eps=1e-3)),
        "2",
        "info",
        fixed=False,
    ),
    Sick(
        "an argument of a function",
        "large-eps",
        lambda: nested(Functional(eps=0.5)),
        "2",
        "warning",
        fixed=False,
    ),
    Sick(
        "γ of zero",
        "dead-channels",
        lambda: with_tensor(warm(nn.Sequential(batch_norm())), "0.weight", [1, 0, 1, 1e-3]),
        "0",
        "info",
        measured={"channels": 2, "share": 0.5},
        fixed=False,
    ),
    Sick(
        "nearly all of them, of a function",
        "dead-channels",
        lambda: with_tensor(nested(Functional()), "2.gamma", [1e-4, 1e-4, 0, 1]),
        "2",
        "warning",
        measured={"channels": 3, "share": 0.75},
        fixed=False,
    ),
    Sick(
        "before a ReLU",
        "negative-gamma",
        lambda: with_tensor(nn.Sequential(batch_norm(), nn.ReLU()), "0.weight", [1, -1, 1, 1]),
        "0",
        "info",
        measured={"channels": 1, "share": 0.25},
        fixed=False,
    ),
    Sick(
        "the ReLU is part of the layer",
        "negative-gamma",
        lambda: with_tensor(
            nested(bnkit.BatchNorm1d(4, activation="relu")), "2.norm.weight", [-2, -1, 1, 1]
        ),
        "2.norm",
        "info",
        fixed=False,
    ),
    Sick(
        "inside a layer that owns it, before a function",
        "negative-gamma",
        lambda: with_tensor(OwnedAndRectified(), "fc.batchnorm.weight", [-1, 1, 1, 1]),
        "fc.batchnorm",
        "info",
        same_in_eval=True,
    ),
    Sick(
        "one channel",
        "exploding-gamma",
        lambda: with_tensor(warm(nn.Sequential(batch_norm())), "0.weight", [1, 200, 1, 1]),
        "0",
        "warning",
        measured={"channels": 1, "largest |γ|": 200.0},
        fixed=False,
    ),
    Sick(
        "negative, of a function",
        "exploding-gamma",
        lambda: with_tensor(nested(Functional()), "2.gamma", -1e3),
        "2",
        "warning",
        measured={"channels": 4},
        fixed=False,
    ),
    Sick(
        "a constant feature",
        "collapsed-variance",
        lambda: nn.Sequential(batch_norm()),
        "0",
        "info",
        batches=lambda: [batch * torch.tensor([1.0, 0, 1, 1]) for batch in rows()],
        measured={"channels": 1, "share": 0.25},
        fixed=False,
    ),
    Sick(
        "most features constant before any training",
        "collapsed-variance",
        lambda: nn.Sequential(nn.Identity(), batch_norm()),
        "1",
        "warning",
        batches=lambda: [batch * torch.tensor([1.0, 0, 0, 0]) for batch in rows()],
        measured={"channels": 3},
        fixed=False,
    ),
    Sick(
        "weights that begin at 0",
        "collapsed-variance",
        lambda: nn.Sequential(starting_at_zero(nn.Linear(4, 4)), batch_norm()),
        "1",
        "info",
        measured={"channels": 4},
        fixed=False,
    ),
    Sick(
        "weights that begin at 0, and stayed there in training",
        "collapsed-variance",
        lambda: warm(nn.Sequential(starting_at_zero(nn.Linear(4, 4)), batch_norm())),
        "1",
        "warning",
        measured={"channels": 4},
        fixed=False,
    ),
    Sick(
        "most channels, seen in the running variance only",
        "collapsed-variance",
        lambda: with_tensor(nested(Subclass(4)), "2.running_var", [1e-9, 1e-9, 0, 2.0]),
        "2",
        "warning",
        batches=lambda: None,
        measured={"channels": 3},
        fixed=False,
    ),
    Sick(
        "mini-batches of two",
        "noisy-statistics",
        lambda: nn.Sequential(batch_norm()),
        "0",
        "warning",
        batches=lambda: rows(2, batches=40),
        measured={"effective values per channel": pytest.approx(2)},
    ),
    Sick(
        "many values, but those of a row are alike",
        "noisy-statistics",
        lambda: nested(Subclass(4)),
        "2",
        "warning",
        batches=lambda: [batch[..., None].expand(-1, -1, 50) for batch in rows(4, batches=40)],
        measured={"effective values per channel": pytest.approx(4)},
    ),
    Sick(
        "virtual batches of four rows in 64",
        "noisy-statistics",
        lambda: nested(bnkit.layers.GhostBatchNorm1d(4, virtual_batch_size=4)),
        "2",
        "warning",
    ),
)


def young(model, *, batches):
    for batch in rows(batches=batches):
        model(batch)
    return model


def half_buffers(model):
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.to(torch.bfloat16)
    return model


class OwnedAndRectified(nn.Module):
    def __init__(self):
        super().__init__()
        plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        self.fc = bnkit.add(plain, torch.zeros(2, 4))[0]

    def forward(self, x):
        return F.relu(self.fc(x))


def found_by(rule, model, batches):
    evidence = gather(model, batches, example=None if batches is not None else rows()[0])
    return list(CHECKS[rule](evidence))


def at(findings, layer):
    return [finding for finding in findings if layer in finding.layers]


@pytest.mark.parametrize("sick", SICK, ids=str)
def test_a_planted_fault_is_found_where_it_is_and_its_fix_takes_it_away(sick, tmp_path):
    model, batches = sick.build(), sick.batches()
    before, state = str(fingerprint(model)), random_state()  # as text NaN is NaN
    findings = found_by(sick.rule, model, batches)
    assert {layer for finding in findings for layer in finding.layers} >= {sick.layer}
    (finding,) = at(findings, sick.layer)
    assert (finding.rule, finding.severity) == (sick.rule, sick.severity)
    assert {name: finding.measured[name] for name in sick.measured} == sick.measured
    assert finding.why
    assert finding.fix
    assert (finding.automatic_fix is not None) is sick.fixed
    if sick.fixed:
        fixed = finding.automatic_fix(model)
        assert at(found_by(sick.rule, fixed, batches), sick.layer) == []
        if sick.same_in_eval:
            x = rows()[0] if batches is None else batches[0]
            torch.testing.assert_close(in_eval(fixed, x), in_eval(model, x))
    assert str(fingerprint(model)) == before
    assert random_state() == state
    if sick.fixed:
        loaded = reloaded(sick.build, finding.automatic_fix, tmp_path)
        assert at(found_by(sick.rule, loaded, batches), sick.layer) == []


def in_eval(model, x):
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad():
        y = model.eval()(x)
    for module, training in modes:
        module.training = training
    return y


def test_every_rule_has_an_obvious_and_a_disguised_sick_model():
    planted = [sick.rule for sick in SICK]
    assert all(planted.count(slug) >= 2 for slug in CHECKS)
    assert set(planted) == set(CHECKS)


# What is no sickness


def small_network():
    plain = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)),
    )
    return bnkit.add(plain, torch.zeros(2, 1, 8, 8))


def images(count=40):
    """Return labelled mini-batches: three patterns in noise."""
    generator = seeded(1)
    patterns = torch.randn(3, 1, 8, 8, generator=generator)
    for _ in range(count):
        labels = torch.randint(0, 3, (64,), generator=generator)
        yield patterns[labels] + torch.randn(64, 1, 8, 8, generator=generator), labels


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for x, labels in images(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model


def findings_at_least(severity, model, batches):
    order = ("info", "warning", "error")
    evidence = gather(model, batches)
    found = [finding for rule in KINDS["state"] for finding in rule.check(evidence)]
    return [str(f) for f in found if order.index(f.severity) >= order.index(severity)]


@pytest.mark.parametrize("training", [True, False], ids=["in training", "in eval mode"])
def test_a_trained_network_is_healthy(trained, training):
    batches = list(images(8))
    assert findings_at_least("warning", trained.train(training), batches) == []


def test_a_fresh_network_in_training_mode_is_healthy():
    assert findings_at_least("warning", small_network(), list(images(8))) == []


def test_a_recalibrated_network_is_not_called_young(trained):
    model = bnkit.recalibrate(trained, list(images(3)), progress=False)
    assert found_by("warming-up", model, list(images(8))) == []
    small = with_tensor(warm(nn.Sequential(batch_norm())), "0.num_batches_tracked", 2)
    assert found_by("warming-up", with_tensor(small, "0.running_var", 0.1), None) == []


def test_what_the_share_of_the_start_does_not_explain_is_no_warming_up():
    # After 40 mini-batches 1.5% of the start are left; the mean is 10 standard deviations away.
    model = young(nn.Sequential(batch_norm()), batches=40).eval()
    model[0].running_mean += 30.0
    assert found_by("warming-up", model, rows()) == []
    assert found_by("stale-statistics", model, rows()) != []


def test_an_inserted_batch_norm_does_not_explode():
    assert found_by("exploding-gamma", of_insertion(), None) == []


@pytest.mark.parametrize(("training", "severity"), [(True, "info"), (False, "warning")])
def test_the_zeros_that_start_a_residual_branch_are_information_in_training(training, severity):
    model = with_tensor(nn.Sequential(batch_norm()), "0.weight", 0.0).train(training)
    (finding,) = found_by("dead-channels", model, None)
    assert (finding.severity, finding.measured["share"]) == (severity, 1.0)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(batch_norm(), nn.Tanh()),
        nn.Sequential(bnkit.BatchNorm1d(4, activation="tanh"), nn.ReLU()),
        nn.Sequential(batch_norm()),
    ],
    ids=["before a tanh", "with a tanh inside", "at the end"],
)
def test_negative_gamma_matters_before_a_relu_only(model):
    name = "0.weight" if isinstance(model[0], nn.BatchNorm1d) else "0.norm.weight"
    with_tensor(model, name, -1.0)
    assert found_by("negative-gamma", model, rows()) == []


def test_steps_that_no_sequence_reached_are_no_finding():
    layer = PerStepBatchNorm1d(4, max_steps=6)
    statistics = layer.of_steps(0, 3)
    layer(torch.randn(64, 4, 3, generator=seeded(0)), *statistics)
    layer.track(*statistics)
    layer.num_batches_tracked[:3] = 1000
    (model := nn.Sequential(nn.Identity())).add_module("norm", layer)
    evidence = gather(model.eval())
    assert [f.rule for rule in KINDS["state"] for f in rule.check(evidence)] == []


def test_an_unused_layer_without_statistics_is_information():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.aux = batch_norm()

        def forward(self, x):
            return self.aux(x) if self.training else x

    (finding,) = found_by("never-updated", Idle().eval(), rows())
    assert (finding.severity, finding.layers) == ("info", ("aux",))


def test_frozen_layers_of_other_data_are_information():
    model = nn.Sequential(warm(FrozenAfter(), rows(shift=20.0)))
    model[0].norm.train(False)
    (finding,) = found_by("stale-statistics", model, rows())
    assert (finding.severity, finding.layers, finding.automatic_fix) == ("info", ("0.norm",), None)


class FrozenAfter(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = batch_norm()

    def forward(self, x):
        return self.norm(x)


# Numbers


def test_the_output_change_is_that_of_the_layer():
    torch.manual_seed(0)
    layer = warm(batch_norm(), rows(shift=4.0, scale=2.0))
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    batch = torch.cat(rows())
    (finding,) = found_by("stale-statistics", nn.Sequential(layer).eval(), batch)
    with torch.no_grad():
        by_running = layer.eval()(batch)
        by_batch = layer.train()(batch)
    expected = ((by_running - by_batch).norm() / by_batch.norm()).item()
    assert finding.measured["output change"] == pytest.approx(expected, rel=1e-3)


def test_the_distance_in_standard_errors_is_near_one_by_chance():
    """64 layers whose averages and mini-batches are of the same data."""
    model = nn.Sequential(batch_norm(momentum=0.1))
    generator = seeded(3)
    distances = []
    for _ in range(64):
        young_again = young_from(model, generator)
        evidence = gather(young_again, [torch.randn(32, 4, generator=generator) for _ in range(4)])
        (reading,) = readings(evidence)
        distances.append(distance_in_errors(reading.compared))
    assert 0.7 < sum(distances) / len(distances) < 1.5
    assert max(distances) < ERRORS


def young_from(model, generator):
    model[0].reset_running_stats()
    for _ in range(60):
        model(torch.randn(32, 4, generator=generator))
    return model


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (rows(16, batches=50), 16),
        ([b[..., None].expand(-1, -1, 9) for b in rows(16, batches=50)], 16),
        ([b.view(16, 4, 4) for b in rows(batches=50)], 64),
    ],
    ids=["rows", "rows of equal values", "rows of independent values"],
)
def test_effective_values_are_those_of_independent_rows(batches, expected):
    (reading,) = readings(gather(nn.Sequential(batch_norm()), batches))
    assert effective_values(reading) == pytest.approx(expected, rel=0.15)


def test_accumulated_statistics_are_worth_all_micro_batches():
    layer = bnkit.layers.AccumulatedBatchNorm1d(4, micro_batches=8)
    (reading,) = readings(gather(nn.Sequential(layer), rows(4, batches=40)))
    assert effective_values(reading) == pytest.approx(32, rel=0.15)


class Beside(nn.Module):
    """A branch that hardly counts."""

    def __init__(self, norm, share):
        super().__init__()
        self.norm, self.share = norm, share

    def forward(self, x):
        return x + self.share * self.norm(x)


@pytest.mark.parametrize(("share", "severity"), [(0.01, "info"), (10.0, "error")])
def test_stale_statistics_are_as_bad_as_what_they_do_to_the_model(share, severity):
    model = Beside(warm(batch_norm(), rows(shift=9.0)), share).eval()
    (finding,) = found_by("stale-statistics", model, rows())
    fixed = finding.automatic_fix(model)
    batch = rows()[0]
    with torch.no_grad():
        expected = ((fixed(batch) - model(batch)).norm() / fixed(batch).norm()).item()
    assert finding.severity == severity
    assert finding.measured["of the model"] == pytest.approx(expected, rel=1e-5)


def test_fixed_eps_follows_small_variances():
    model = warm(nn.Sequential(batch_norm()), small_rows())
    (finding,) = found_by("large-eps", model, small_rows())
    fixed = finding.automatic_fix(model)
    assert fixed[0].eps < 0.02 * fixed[0].running_var.min()


@pytest.mark.parametrize(("momentum", "fixed"), [(0.99, 0.01), (0.9, 0.1), (1.0, 0.1)])
def test_momentum_becomes_what_torch_means(momentum, fixed):
    model = nn.Sequential(batch_norm(momentum=momentum))
    (finding,) = found_by("momentum-convention", model, None)
    assert finding.automatic_fix(model)[0].momentum == fixed
    assert f"momentum={fixed:g}" in finding.fix


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_other_momentum_is_left_alone(momentum):
    assert found_by("momentum-convention", nn.Sequential(batch_norm(momentum=momentum)), None) == []


# Signs


class Tied(nn.Module):
    """The weights before the batch norm are those of another layer, too."""

    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(4, 4), batch_norm(), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(F.relu(self.bn(self.a(x))))


def signed(*layers):
    """Return a network whose batch norms have γ and statistics of both signs."""
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
    return model


def after_convs(*before, groups=1):
    conv = nn.Conv2d(4, 4, 3, groups=groups)
    return signed(nn.Unflatten(1, (4, 4, 4)), *before or (conv,), nn.BatchNorm2d(4), nn.ReLU())


POSITIVE = {
    "a dense layer": lambda: signed(nn.Linear(4, 4), batch_norm(), nn.ReLU()),
    "a layer that owns it": lambda: signed(
        *bnkit.add(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 4))
    ),
    "a depthwise convolution": lambda: after_convs(groups=4),
    "a transposed one, and a pooling": lambda: after_convs(
        nn.ConvTranspose2d(4, 4, 2, bias=False), nn.AvgPool2d(2)
    ),
}


@pytest.mark.parametrize("build", POSITIVE.values(), ids=POSITIVE)
@pytest.mark.parametrize("training", [True, False])
def test_signs_turn_before_the_batch_norm_and_both_modes_compute_the_same(
    build, training, tmp_path
):
    model = build().double().train(training)
    x = torch.randn(16, 4, dtype=torch.float64, generator=seeded(0))
    x = x if isinstance(model[0], nn.Linear) else x.repeat(1, 16)
    (finding,) = found_by("negative-gamma", model, [x])
    fixed = finding.automatic_fix(model)
    assert found_by("negative-gamma", fixed, [x]) == []
    assert torch.equal(fixed(x), model(x))
    reloaded(lambda: build().double(), finding.automatic_fix, tmp_path)


UNTURNED = {
    "tied weights": (4, Tied),
    "the maximum": (64, lambda: after_convs(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2))),
    "groups of a transposed one": (64, lambda: after_convs(nn.ConvTranspose2d(4, 4, 2, groups=2))),
    "a tanh": (4, lambda: signed(nn.Linear(4, 4), nn.Tanh(), batch_norm(), nn.ReLU())),
    "parametrised": (
        4,
        lambda: signed(
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), batch_norm(), nn.ReLU()
        ),
    ),
}


@pytest.mark.parametrize(("features", "build"), UNTURNED.values(), ids=UNTURNED)
def test_signs_stay_where_what_feeds_the_batch_norm_would_not_follow(features, build):
    model = build()
    norm = next(m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    nn.init.constant_(norm.weight, -1.0)
    (finding,) = found_by("negative-gamma", model, rows(16, features=features))
    assert finding.automatic_fix is None


# Causes


def test_what_follows_from_another_finding_names_it():
    model = nn.Sequential(batch_norm(), nn.ReLU(), nn.Linear(4, 2)).eval()
    diagnosis = diagnose(model, rows(), progress=False)
    stale = next(f for f in diagnosis.findings if f.rule == "stale-statistics")
    assert "never-updated" in [cause.rule for cause in stale.causes]
    fixed = diagnose(diagnosis.fixed(model), rows(), progress=False)
    assert fixed.at_least("warning") == ()
