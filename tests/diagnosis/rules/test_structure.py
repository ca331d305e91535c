"""Sick models, two at least for each rule: one obvious, others disguised; and healthy ones."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bnkit
from bnkit.diagnosis.gathering import gather
from bnkit.diagnosis.rules.table import KINDS
from bnkit.experiments import networks
from bnkit.roles import is_batch_norm
from reloading import reloaded
from surgery.sameness import verified

CHECKS = {rule.slug: rule.check for rule in KINDS["structure"]}


def images(number=4, rows=16, channels=3, *, shift=0.0):
    generator = torch.Generator().manual_seed(0)
    return [shift + torch.randn(rows, channels, 6, 6, generator=generator) for _ in range(number)]


def vectors(number=4, rows=16, features=6):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, features, generator=generator) for _ in range(number)]


def sequences(number=4, rows=8):
    """Return sequences of 3 features and 10 steps, of which the last ones of each are zeros."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(rows, 3, 10, generator=generator) + 2 for _ in range(number)]
    for batch in batches:
        for row, sequence in enumerate(batch):
            sequence[:, 2 + row :] = 0
    return batches


class Functional(nn.Module):
    """Everything is a function: conv2d with a bias, dropout, batch_norm."""

    def __init__(self, *, p=0.0, always=False):
        super().__init__()
        self.conv, self.p, self.always = nn.Conv2d(3, 8, 3), p, always
        self.gamma, self.beta = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("variance", torch.ones(8))

    def forward(self, x):
        x = F.conv2d(F.dropout(x, self.p, self.training), self.conv.weight, self.conv.bias)
        training = self.training or self.always
        x = F.batch_norm(x, self.mean, self.variance, self.gamma, self.beta, training)
        return F.relu(x).mean((2, 3)) @ self.gamma


class OwnConv(nn.Conv2d):
    def forward(self, input):
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


class OwnNorm(nn.BatchNorm2d):
    pass


class OverTime(nn.Module):
    """A Linear whose features lie on the last axis, and a batch norm that wants them on axis 1."""

    def __init__(self):
        super().__init__()
        self.fc, self.bn, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.fc(x[:, None] + torch.linspace(0, 1, 5)[:, None])  # (N, 5, 8)
        return self.head(F.relu(self.bn(x.transpose(1, 2))).mean(2))


def head(features=8):
    return nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 2)


class Reused(nn.Module):
    """One batch norm after two layers, under one name or under two."""

    def __init__(self, *, names=1):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(3, 8, 1, bias=False)
        self.bn_a = self.bn_b = nn.BatchNorm2d(8)
        if names == 1:
            del self.bn_b
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        second = self.bn_b if hasattr(self, "bn_b") else self.bn_a
        y = self.bn_a(self.a(x)).relu() + second(3 * self.b(x).relu() + 5).relu()
        return self.out(y.mean((2, 3)))


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant=False, functional=False):
        super().__init__()
        self.body = Functional() if functional else stem()
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


def stem(*options):
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), *options, *head())


def froze(model, path, **attributes):
    for name, value in attributes.items():
        if name == "requires_grad":
            model.get_submodule(path).requires_grad_(value)
        else:
            setattr(model.get_submodule(path), name, value)
    return model


class Masking(nn.Module):
    """Dropout by hand: a product with random numbers."""

    def forward(self, x):
        return x * torch.bernoulli(torch.full_like(x, 0.5)) * 2 if self.training else x


def dense_with(dropout):
    layers = nn.Linear(6, 8), nn.ReLU(), dropout, nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 2))


class Inner(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.inner = nn.ModuleDict({"parts": nn.Sequential(*parts)})

    def forward(self, x):
        return self.inner["parts"](x)


def pooled(*, rank=2):
    pool = nn.AdaptiveAvgPool2d(1)
    if rank == 4:
        return nn.Sequential(pool, nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2))
    return nn.Sequential(pool, nn.Flatten(), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))


def loader(data, size):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=size)


@dataclass(frozen=True)
class Sick:
    """A model with one planted fault: which rule finds it, in which layers, how bad it is."""

    rule: str
    why: str
    build: Callable[[], nn.Module]
    layers: tuple[str, ...]
    severity: str = "warning"
    batches: Callable[[], Any] = images
    fixed: bool = True

    def __str__(self):
        return f"{self.rule}: {self.why}"

    def seeded(self):
        torch.manual_seed(0)
        return self.build()


def sequence_net(*, flattened=False):
    if flattened:
        plain = nn.Sequential(Swap(), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), Swap(), Last())
        return bnkit.add(plain, sequences()[0])
    layers = nn.Conv1d(3, 8, 1, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.AdaptiveMaxPool1d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 2))


class Swap(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class Last(nn.Module):
    def forward(self, x):
        return x.amax(2)


def two_domains():
    return [batch + 6 * (number % 2) for number, batch in enumerate(images(8))]


def biased(conv=nn.Conv2d, norm=nn.BatchNorm2d, *between):
    return nn.Sequential(conv(3, 8, 3), *between, norm(8), *head())


def in_row(*parts, **options):
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), *parts, *head(**options))


def trained(model):
    """Return the model with running statistics, gammas and betas that are none of the default."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                for tensor in (module.running_mean, module.weight, module.bias):
                    tensor.copy_(torch.randn(len(tensor)))
                module.running_var.uniform_(0.5, 2)
    return model


SICK = (
    Sick("cancelled-bias", "a conv", lambda: trained(biased()), ("0", "1"), "info"),
    Sick("cancelled-bias", "functions", Functional, ("conv", ""), "info", fixed=False),
    Sick(
        "cancelled-bias",
        "subclasses, and a pooling between",
        lambda: trained(biased(OwnConv, OwnNorm, nn.MaxPool2d(2))),
        ("0", "2"),
        "info",
    ),
    Sick("cancelled-bias", "axes swap", OverTime, ("fc", "bn"), "info", batches=vectors),
    Sick(
        "after-activation",
        "a module",
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), *head()[1:]),
        ("2",),
        "info",
        fixed=False,
    ),
    Sick(
        "after-activation",
        "inside of the activation",
        lambda: bnkit.add(
            nn.Sequential(nn.Conv2d(3, 8, 3), *head()), images()[0], placement="after_activation"
        ),
        ("1.batchnorm",),
        "info",
        fixed=False,
    ),
    Sick(
        "dropout-before",
        "right before",
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.Dropout(0.5), nn.BatchNorm2d(8), *head()
        ),
        ("2", "1"),
    ),
    Sick(
        "dropout-before",
        "a layer between",
        lambda: trained(dense_with(nn.Dropout(0.5))),
        ("4", "2"),
        batches=vectors,
    ),
    Sick(
        "dropout-before",
        "a layer between that is not trained",
        lambda: dense_with(nn.Dropout(0.5)),
        ("4", "2"),
        "info",
        batches=vectors,
    ),
    Sick(
        "dropout-before",
        "by hand",
        lambda: trained(dense_with(Masking())),
        ("4", "2"),
        batches=vectors,
        fixed=False,
    ),
    Sick(
        "on-logits",
        "after the last layer",
        lambda: nn.Sequential(nn.Linear(6, 2, bias=False), nn.BatchNorm1d(2)).eval(),
        ("1",),
        batches=vectors,
    ),
    Sick(
        "on-logits",
        "in a network that trains, from which no fix takes it",
        lambda: nn.Sequential(nn.Linear(6, 2, bias=False), nn.BatchNorm1d(2)),
        ("1",),
        batches=vectors,
        fixed=False,
    ),
    Sick(
        "on-logits",
        "nested, before a softmax",
        lambda: nn.Sequential(
            Inner(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)),
            Inner(nn.BatchNorm1d(3)),
            nn.Softmax(1),
        ).eval(),
        ("1.inner.parts.0",),
        batches=vectors,
    ),
    Sick(
        "one-value-per-channel",
        "the last mini-batch",
        pooled,
        ("2",),
        "error",
        batches=lambda: loader(torch.randn(33, 3, 6, 6), 16),
        fixed=False,
    ),
    Sick(
        "one-value-per-channel",
        "a batch of one, 1×1 maps",
        lambda: pooled(rank=4),
        ("1",),
        "error",
        batches=lambda: images(rows=1),
        fixed=False,
    ),
    Sick("several-distributions", "called twice", Reused, ("bn_a",), fixed=False),
    Sick("several-distributions", "under two names", lambda: Reused(names=2), ("bn_a",)),
    Sick(
        "several-distributions",
        "mini-batches of two domains",
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), *head()),
        ("0",),
        batches=two_domains,
        fixed=False,
    ),
    Sick("unfolded", "a conv", lambda: trained(biased()).eval(), ("1",), "info"),
    Sick(
        "unfolded",
        "dense layers that own theirs",
        lambda: bnkit.add(networks.mlp((6,), 2, activation="tanh"), vectors()[0]).eval(),
        ("1.batchnorm", "3.batchnorm", "5.batchnorm"),
        "info",
        batches=vectors,
    ),
    Sick(
        "two-normalisations",
        "two batch norms",
        lambda: trained(in_row(nn.BatchNorm2d(8), nn.BatchNorm2d(8))).eval(),
        ("2", "1"),
    ),
    Sick(
        "two-normalisations",
        "in a network that trains, from which no fix takes one",
        lambda: in_row(nn.BatchNorm2d(8), nn.BatchNorm2d(8)),
        ("2", "1"),
        fixed=False,
    ),
    Sick(
        "two-normalisations",
        "a group norm, and a reshape between",
        lambda: in_row(
            nn.GroupNorm(2, 8), nn.Flatten(2), nn.BatchNorm1d(8), nn.Unflatten(2, (4, 4))
        ),
        ("3", "1"),
        fixed=False,
    ),
    Sick(
        "two-normalisations",
        "one inside of the layer",
        lambda: nn.Sequential(
            *bnkit.add(nn.Sequential(nn.Conv2d(3, 8, 3), *head()), images()[0])[:1],
            nn.BatchNorm2d(8),
            *head(),
        ).eval(),
        ("1", "0.batchnorm"),
    ),
    Sick("padding-in-statistics", "zeros at the ends", sequence_net, ("1",), batches=sequences),
    Sick(
        "padding-in-statistics",
        "flattened: a dense layer over sequences",
        lambda: sequence_net(flattened=True),
        ("1.batchnorm",),
        batches=sequences,
    ),
    Sick("checkpointed-twice", "all of it", Checkpointed, ("body.1",)),
    Sick(
        "checkpointed-twice",
        "re-entrant",
        lambda: nn.Sequential(nn.Identity(), Checkpointed(reentrant=True)),
        ("1.body.1",),
    ),
    Sick(
        "checkpointed-twice",
        "a function",
        lambda: Checkpointed(functional=True),
        ("body",),
        fixed=False,
    ),
    Sick(
        "frozen-but-batch-statistics", "momentum", lambda: froze(stem(), "1", momentum=0.0), ("1",)
    ),
    Sick(
        "frozen-but-batch-statistics",
        "statistics switched off",
        lambda: froze(nn.Sequential(stem()), "0.1", track_running_stats=False),
        ("0.1",),
    ),
    Sick(
        "frozen-but-batch-statistics",
        "no gradients",
        lambda: froze(stem(), "1", requires_grad=False),
        ("1",),
    ),
    Sick(
        "frozen-but-batch-statistics",
        "a function that always trains",
        lambda: Functional(always=True),
        ("",),
        fixed=False,
    ),
)


def found_in(model, batches, rule):
    return list(CHECKS[rule](gather(model, batches)))


@pytest.mark.parametrize("sick", SICK, ids=str)
def test_the_planted_fault_is_found_at_its_layer_and_fixed(sick, tmp_path):
    model = sick.seeded()
    (finding,) = found_in(model, sick.batches(), sick.rule)
    assert (finding.rule, finding.severity) == (sick.rule, sick.severity)
    assert finding.layers == sick.layers
    assert (finding.automatic_fix is not None) is sick.fixed
    if finding.automatic_fix is None:
        return
    fixed = finding.automatic_fix(model)
    assert found_in(fixed, sick.batches(), sick.rule) == []
    again = reloaded(sick.seeded, finding.automatic_fix, tmp_path)
    assert found_in(again, sick.batches(), sick.rule) == []
    example = next(iter(sick.batches())).requires_grad_()  # else re-entrant checkpoints warn
    measures = any(step.measures for step in finding.automatic_fix.steps)  # on purpose others
    # Without a mask the masked kind refuses to train.
    if not measures and sick.rule != "padding-in-statistics":
        verified(model, fixed, example, exactly=finding.automatic_fix)


def test_statistics_that_are_nan_are_not_taken_for_written_twice():
    model = stem()
    model[1].running_var.fill_(math.nan)
    assert found_in(model, images(), "checkpointed-twice") == []


def test_every_rule_has_an_obvious_and_a_disguised_sick_model():
    planted = [sick.rule for sick in SICK]
    elsewhere = {"two-forwards", "wrong-axis", "fails-in-training"}  # below, and of inner layers
    assert {slug for slug in CHECKS if planted.count(slug) < 2} == elsewhere


def in_two_domains(*, shift):
    return [batch + shift * (number % 2) for number, batch in enumerate(images(8, rows=64))]


@pytest.mark.parametrize(("shift", "severities"), [(0.0, []), (0.08, ["info"]), (1.0, ["warning"])])
def test_mini_batches_that_differ_a_little_are_for_information(shift, severities):
    # 0.08 standard deviations are far from chance: means of 64 · 36 values are off by 0.02.
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), *head())
    found = found_in(model, in_two_domains(shift=shift), "several-distributions")
    assert [finding.severity for finding in found] == severities


# DistributedDataParallel


class Twice(nn.Module):
    """The two forwards of a GAN's discriminator, or of a Siamese network."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) + self.net(x.flip(0))


def test_a_parallel_part_that_runs_twice_before_a_backward_is_an_error(one_rank):
    (finding,) = found_in(Twice(one_rank(stem())), images(), "two-forwards")
    assert (finding.severity, finding.layers) == ("error", ("net.module.1",))
    assert finding.measured == {"forwards": 2}


def test_a_parallel_part_deep_inside_is_found_too(one_rank):
    model = nn.Sequential(Twice(nn.Sequential(nn.Identity(), one_rank(stem()))))
    (finding,) = found_in(model, images(), "two-forwards")
    assert (finding.severity, finding.layers) == ("error", ("0.net.1.module.1",))


def test_a_parallel_model_is_told_that_it_must_not_run_twice(one_rank):
    (finding,) = found_in(one_rank(stem()), images(), "two-forwards")
    assert (finding.severity, finding.layers) == ("info", ("1",))


def test_buffers_that_are_not_sent_do_no_harm(one_rank):
    unsent = one_rank(stem())
    unsent.broadcast_buffers = False
    model = Twice(unsent)
    assert found_in(model, images(), "two-forwards") == []


# What looks like a fault and is none


class Skip(nn.Module):
    """The bias of a conv reaches the output by another way than the batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.conv(x)
        return (self.bn(y).relu() + y).mean((2, 3))


class MergedChannels(nn.Module):
    """Two features lie in one channel: the batch norm takes off their mean bias only."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 1), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.bn(self.conv(x).view(len(x), 4, -1)).relu().mean(2)


class ScaledBias(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * self.bias[:, None, None]


class BothBranches(nn.Module):
    """The same batch norm for two views of the same data."""

    def __init__(self):
        super().__init__()
        self.net = stem()

    def forward(self, x):
        return self.net(x) + self.net(x.flip(3))


def dropout_last():
    return nn.Sequential(*stem()[:-1], nn.Dropout(0.5), nn.Linear(8, 2))


def always_on():
    """Dropout in both modes, as in Monte Carlo dropout: no shift between them."""

    class Always(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=True)

    return dense_with(Always())


class Activated(nn.BatchNorm2d):
    """A batch norm of another library that ends in an activation."""

    def __init__(self, features, act=nn.ReLU):
        super().__init__(features)
        self.drop, self.act = nn.Identity(), act()

    def forward(self, input):
        return self.act(self.drop(super().forward(input)))


class ByFunction(nn.BatchNorm2d):
    """The same with a function, under a forward that names no activation."""

    def forward(self, input):
        return super().forward(input).clamp(min=0)


def backbone(*norms):
    """Return a feature extractor that ends in a batch norm's activation."""
    layers = [(nn.Conv2d(8 if index else 3, 8, 3), norm) for index, norm in enumerate(norms)]
    return nn.Sequential(*(part for pair in layers for part in pair), nn.Flatten(2))


def pooling_between(norm):
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.MaxPool2d(2), nn.BatchNorm2d(8), *head())


ENDING = {
    "ours": lambda: bnkit.layers.BatchNorm2d(8, activation="relu"),
    "of another library": lambda: Activated(8),
    "with another activation": lambda: Activated(8, nn.SiLU),
    "a function": lambda: ByFunction(8),
    "made by convert": lambda: bnkit.convert(
        nn.Sequential(bnkit.layers.BatchNorm2d(8, activation="relu")), "torch"
    )[0],
}


@pytest.mark.parametrize("norm", ENDING.values(), ids=ENDING)
def test_a_batch_norm_that_ends_in_an_activation_counts_as_one(norm):
    torch.manual_seed(0)
    assert found_in(backbone(norm()), images(), "on-logits") == []
    model = pooling_between(norm())
    assert found_in(model, images(), "two-normalisations") == []
    (finding,) = found_in(model, images(), "after-activation")
    assert (finding.severity, finding.layers) == ("info", ("3",))


def test_an_accelerated_network_is_as_healthy_as_it_was():
    torch.manual_seed(0)
    plain = backbone(nn.BatchNorm2d(8))
    plain.insert(2, nn.ReLU6())
    for model in (plain, bnkit.accelerate(plain, images()[0])):
        found = bnkit.diagnose(model.train(), images(), progress=False)
        assert [str(each) for each in found.at_least("warning")] == []


def test_a_batch_norm_that_ends_in_an_answer_is_on_the_logits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Activated(8, nn.Sigmoid))
    (finding,) = found_in(model, images(), "on-logits")
    assert finding.layers == ("1",)


def test_no_fix_takes_a_batch_norm_out_of_a_network_that_trains():
    for sick in SICK:
        model, batches = sick.seeded().train(), sick.batches()
        fixes = [f.automatic_fix for f in found_in(model, batches, sick.rule) if f.automatic_fix]
        for fix in fixes:
            left = [m for m in fix(model).modules() if is_batch_norm(m)]
            assert len(left) >= len([m for m in model.modules() if is_batch_norm(m)]), sick


SOUND = (
    ("cancelled-bias", Skip, images),
    ("cancelled-bias", MergedChannels, images),
    ("cancelled-bias", lambda: biased(ScaledBias), images),
    ("cancelled-bias", lambda: biased(nn.Conv2d, nn.BatchNorm2d, nn.ReLU()), images),
    ("cancelled-bias", lambda: froze(biased(), "1", training=False), images),
    ("after-activation", biased, images),
    ("dropout-before", dropout_last, images),
    ("dropout-before", always_on, vectors),
    ("dropout-before", lambda: dense_with(nn.Dropout(0.0)), vectors),
    ("on-logits", lambda: nn.Sequential(*stem(), nn.Softmax(1)), images),
    ("one-value-per-channel", pooled, lambda: loader(torch.randn(34, 3, 6, 6), 16)),
    ("one-value-per-channel", stem, lambda: images(rows=1)),
    ("unfolded", lambda: biased().train(), images),
    ("two-normalisations", lambda: in_row(nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8)), images),
    ("padding-in-statistics", sequence_net, lambda: [batch[:, :, :2] for batch in sequences()]),
    ("checkpointed-twice", stem, images),
    ("frozen-but-batch-statistics", lambda: froze(stem(), "1", training=False), images),
    ("frozen-but-batch-statistics", lambda: stem(nn.BatchNorm2d(8, affine=False)), images),
    ("frozen-but-batch-statistics", Functional, images),
    ("two-forwards", BothBranches, images),
)


@pytest.mark.parametrize(
    ("rule", "build", "batches"), SOUND, ids=[f"{rule}-{i}" for i, (rule, *_) in enumerate(SOUND)]
)
def test_what_only_looks_like_a_fault_is_none(rule, build, batches):
    torch.manual_seed(0)
    assert found_in(build(), batches(), rule) == []


def test_two_mini_batches_that_chance_sets_apart_are_no_finding():
    # All channels vary together, by the value of a row: its means are over 10 times as far apart as
    # on average in 1 of 140 pairs of mini-batches, and so in every third network of 50 layers.
    generator, found = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        batches = [torch.randn(8, 1, generator=generator) * torch.ones(4) for _ in range(2)]
        model = nn.Sequential(nn.BatchNorm1d(4))
        found += len(found_in(model, batches, "several-distributions"))
    assert found == 0


def test_calls_that_see_the_same_distribution_are_for_information():
    torch.manual_seed(0)
    (finding,) = found_in(BothBranches(), images(), "several-distributions")
    assert finding.severity == "info"
    apart, chance = (
        finding.measured[name] for name in ("distance in standard deviations", "by chance")
    )
    assert apart < 2 * chance


def test_the_variance_ratio_of_dropout_is_that_of_algebra():
    # Kept values are doubled: E[y²] = 2 E[x²], so var(y) = 2 (var(x) + μ²) − μ².
    torch.manual_seed(0)
    x = torch.randn(200_000, 1) + 1
    (finding,) = found_in(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(1)), [x], "dropout-before")
    assert finding.measured["variance in training / in eval mode"] == pytest.approx(3, rel=0.02)
    assert finding.layers == ("1", "0")


def test_without_mini_batches_a_shift_is_for_information_and_nothing_is_measured():
    torch.manual_seed(0)
    evidence = gather(dense_with(nn.Dropout(0.5)), example=vectors()[0])
    (finding,) = CHECKS["dropout-before"](evidence)
    assert (finding.severity, list(finding.measured)) == ("info", ["dropout"])


@pytest.mark.parametrize(
    ("training", "given", "severity"),
    [(True, "example", "warning"), (False, "example", "info"), (False, "batches", "info")],
)
def test_one_value_of_an_example_or_in_eval_mode_need_not_break_the_training(
    training, given, severity
):
    model, (x,) = pooled().train(training), images(1, rows=1)
    evidence = gather(model, example=x) if given == "example" else gather(model, [x])
    (finding,) = CHECKS["one-value-per-channel"](evidence)
    assert finding.severity == severity


def test_a_batch_norm_on_one_of_several_outputs_is_for_information():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = stem()

        def forward(self, x):
            features = self.net[:2](x)
            return features, self.net[2:](features)

    class Levels(Pyramid):
        def forward(self, x):
            features = self.net[:2](x)
            return features, x

    assert found_in(Pyramid(), images(), "on-logits") == []
    (finding,) = found_in(Levels(), images(), "on-logits")
    assert (finding.severity, finding.layers) == ("info", ("net.1",))


def test_a_model_that_cannot_be_run_still_gets_the_rules_that_need_no_run():
    evidence = gather(froze(stem(), "1", momentum=0.0))
    found = [finding.rule for check in CHECKS.values() for finding in check(evidence)]
    assert found == ["frozen-but-batch-statistics"]
