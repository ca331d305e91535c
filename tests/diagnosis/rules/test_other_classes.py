"""Batch norms of other classes, judged by what they do: when they use the mini-batch, how much."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit.diagnosis.diagnosing import diagnose
from cases import seeded


def rows(*, shift=1.0, batches=10):
    generator = seeded(0)
    return [2 * torch.randn(64, 4, generator=generator) + shift for _ in range(batches)]


class Always(nn.BatchNorm1d):
    """Normalises by the mini-batch in each mode."""

    def forward(self, input):
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps
        )


class AlwaysByHand(nn.BatchNorm1d):
    def forward(self, input):
        centred = input - input.mean(0)
        return centred / (input.var(0, correction=0) + self.eps).sqrt() * self.weight + self.bias


class Never(nn.BatchNorm1d):
    """Normalises by its statistics in each mode, as layers of quantised models do."""

    def forward(self, input):
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False
        )


class Kept(nn.Module):
    """Another library's: its momentum is the share that is kept."""

    def __init__(self, features, momentum=0.9, names=("running_mean", "running_var")):
        super().__init__()
        self.momentum, self.eps, self.names = momentum, 1e-5, names
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer(names[0], torch.zeros(features))
        self.register_buffer(names[1], torch.ones(features))

    def forward(self, x):
        held = [getattr(self, name) for name in self.names]
        if self.training:
            of_batch = x.mean(0), x.var(0)
            for average, new in zip(held, of_batch, strict=True):
                average.mul_(self.momentum).add_(new.detach(), alpha=1 - self.momentum)
            held = of_batch
        return (x - held[0]) / (held[1] + self.eps).sqrt() * self.weight + self.bias


class KeptBatchNorm(Kept):
    pass


def network(norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 2))


def fed(model, batches=None):
    for x in batches or rows(batches=80):
        model(x)
    return model


def rules(model, batches=None, severity="warning"):
    found = diagnose(model, batches or rows(), progress=False)
    return {(each.rule, layer) for each in found.at_least(severity) for layer in each.layers}


@pytest.mark.parametrize("norm", [Always, AlwaysByHand])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_a_class_that_always_takes_the_mini_batch_is_told(norm, training):
    model = fed(network(norm(8))).train(training)
    found = diagnose(model, rows(), progress=False).findings
    (finding,) = (each for each in found if each.rule == "training-mode-export")
    assert (finding.severity, finding.layers) == ("warning" if training else "error", ("1",))
    assert finding.automatic_fix is None


def test_a_class_that_never_takes_the_mini_batch_is_no_error_in_training_mode():
    model = network(Never(8))
    fed(nn.Sequential(model[0], plain := nn.BatchNorm1d(8)))
    model[1].load_state_dict(plain.state_dict())
    model.eval()[1].train()
    assert ("training-mode-export", "1") not in rules(model)


@pytest.mark.parametrize("norm", [Kept, KeptBatchNorm])
@pytest.mark.parametrize("kept", [0.9, 0.99])
def test_a_momentum_that_is_the_kept_share_is_healthy(norm, kept):
    model = fed(network(norm(8, kept)), rows(batches=600)).eval()
    assert rules(model) == set()


@pytest.mark.parametrize("norm", [Kept, KeptBatchNorm])
def test_a_kept_share_that_keeps_nearly_nothing_is_found_and_left_to_its_owner(norm):
    model = network(norm(8, 0.05))
    found = diagnose(fed(model), rows(), progress=False).findings
    (finding,) = (each for each in found if each.rule == "momentum-convention")
    assert finding.measured["momentum"] == pytest.approx(0.95, rel=1e-3)
    assert finding.automatic_fix is None


@pytest.mark.parametrize(
    "names", [("running_mean", "running_var"), ("moving_mean", "moving_variance")], ids=str
)
def test_stale_statistics_of_an_unknown_class_are_not_passed_over_in_silence(names):
    model = fed(network(Kept(8, names=names)), rows(batches=40)).eval()
    found = diagnose(model, rows(shift=9.0), progress=False).at_least("warning")
    assert "train-eval-gap" in [each.rule for each in found]
    assert {layer for each in found for layer in each.layers} == {"1"}


class ByFunction(nn.Module):
    """A batch norm as a function, with buffers of the user's own."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("mu", torch.zeros(features))
        self.register_buffer("sigma2", torch.ones(features))

    def forward(self, x):
        return F.batch_norm(x, self.mu, self.sigma2, training=self.training)


def test_stale_statistics_of_a_function_are_told_by_the_model():
    model = fed(network(ByFunction(8)), rows(batches=40)).eval()
    assert rules(model) == set()
    diagnosis = diagnose(model, rows(shift=9.0), progress=False)
    (finding,) = diagnosis.at_least("warning")
    assert (finding.rule, finding.layers) == ("train-eval-gap", ("1",))
    assert diagnosis.not_run == (
        "the running statistics of 1 (function): what they hold is not read",
    )
