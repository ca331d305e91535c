"""Models on the way to deployment, and programs that have been exported."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import bnkit
from bnkit.diagnosis import diagnose_export
from bnkit.diagnosis.gathering import gather
from bnkit.diagnosis.rules.table import KINDS
from bnkit.layers.frozen import FrozenBatchNorm1d
from cases import seeded
from reloading import reloaded
from zoo.checks import fingerprint

CHECKS = {rule.slug: rule.check for rule in KINDS["export"]}
# Of torch's own making when programs are decomposed.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


def rows(count=16, *, batches=4):
    generator = seeded(0)
    return [torch.randn(count, 4, generator=generator) * 2 + 1 for _ in range(batches)]


def found_by(rule, model, batches=None):
    return list(CHECKS[rule](gather(model, batches)))


def network(norm=None):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 4), nn.Sequential(norm or nn.BatchNorm1d(4)), nn.ReLU(), nn.Linear(4, 2)
    )


# Models


class Stubborn(nn.BatchNorm1d):
    """A layer whose train() knows one mode."""

    def train(self, mode=True):  # noqa: ARG002  the trouble
        return super().train(True)


def half_in_training():
    model = network().eval()
    model[1][0].train()
    return model


@pytest.mark.parametrize(
    "build", [half_in_training, lambda: network(Stubborn(4)).eval()], ids=["by hand", "by a class"]
)
def test_a_layer_in_training_mode_is_found_and_its_fix_ends_it(build, tmp_path):
    model = build()
    before = fingerprint(model)
    (finding,) = found_by("training-mode-export", model, rows())
    assert (finding.rule, finding.severity) == ("training-mode-export", "error")
    assert finding.layers == ("1.0",)
    assert found_by("training-mode-export", finding.automatic_fix(model), rows()) == []
    loaded = reloaded(build, finding.automatic_fix, tmp_path)
    assert found_by("training-mode-export", loaded, rows()) == []
    assert fingerprint(model) == before


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, bnkit.BatchNorm1d], ids=["torch", "bnkit"])
def test_a_layer_without_running_statistics_is_found_and_gets_those_of_the_mini_batches(
    norm, tmp_path
):
    model = network(norm(4, track_running_stats=False)).eval()
    (finding,) = found_by("training-mode-export", model, rows())
    assert (finding.severity, finding.layers) == ("warning", ("1.0",))
    fixed = finding.automatic_fix(model)
    assert found_by("training-mode-export", fixed, rows()) == []
    inputs = torch.cat([model[0](x) for x in rows()]).detach()
    torch.testing.assert_close(fixed[1][0].running_mean, inputs.mean(0))
    torch.testing.assert_close(fixed[1][0].running_var, inputs.var(0))
    loaded = reloaded(
        lambda: network(norm(4, track_running_stats=False)).eval(), finding.automatic_fix, tmp_path
    )
    assert torch.equal(loaded(rows()[0]), fixed(rows()[0]))
    assert found_by("training-mode-export", model)[0].automatic_fix is None  # nothing was measured


class Always(nn.Module):
    """A function that is told to train whatever the mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.variance, training=True)


class Hidden(nn.Module):
    """A layer in a list, which eval() does not reach."""

    def __init__(self):
        super().__init__()
        self.norms = [nn.BatchNorm1d(4)]

    def forward(self, x):
        return self.norms[0](x)


@pytest.mark.parametrize("norm", [Always(), Hidden()], ids=["a function", "a hidden layer"])
def test_what_eval_does_not_reach_is_found(norm):
    (finding,) = found_by("training-mode-export", network(norm).eval(), rows())
    assert (finding.severity, finding.layers, finding.automatic_fix) == ("error", ("1.0",), None)


@pytest.mark.parametrize(
    "build",
    [
        network,
        lambda: network().eval(),
        lambda: network(nn.BatchNorm1d(4, track_running_stats=False)),
        lambda: thawed(network(FrozenBatchNorm1d(4)).eval()),
    ],
    ids=["in training", "in eval mode", "without statistics in training", "frozen by its class"],
)
def test_other_models_are_ready(build):
    assert found_by("training-mode-export", build(), rows()) == []


def thawed(model):
    model[1][0].training = True
    return model


# Programs


def exported(model):
    return torch.export.export(model, (rows()[0],))


def told(findings):
    return [(finding.severity, finding.layers) for finding in findings]


@pytest.mark.parametrize("decompose", [False, True], ids=["as exported", "decomposed"])
@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(4), bnkit.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)],
    ids=["torch", "bnkit", "without statistics"],
)
def test_a_program_in_training_mode_is_an_error(norm, decompose):
    program = exported(network(norm).train())
    program = program.run_decompositions() if decompose else program
    assert told(diagnose_export(program)) == [("error", ("1.0",))]


@pytest.mark.parametrize("decompose", [False, True], ids=["as exported", "decomposed"])
def test_an_unfolded_program_is_information_and_folding_ends_it(decompose):
    def program(model):
        made = exported(model)
        return made.run_decompositions() if decompose else made

    model = network().eval()
    (finding,) = diagnose_export(program(model))
    assert (finding.severity, finding.layers) == ("info", ("1.0",))
    assert "bnkit.fold" in finding.fix
    folded = bnkit.surgery.folding.fold(model, rows()[0])
    assert not diagnose_export(program(folded.eval())).findings


def test_a_batch_norm_that_nothing_can_take_in_is_told_apart():
    (finding,) = diagnose_export(exported(nn.Sequential(nn.Tanh(), nn.BatchNorm1d(4)).eval()))
    assert finding.measured == {"batch norms": 1}
    assert "plan_folding" in finding.fix


@pytest.mark.parametrize("training", [True, False])
def test_a_graph_inside_of_a_model_is_looked_at(training):
    inner = exported(network().train(training)).module()
    holder = nn.Module()
    holder.program = inner
    holder.forward = inner.forward
    (finding,) = CHECKS["exported-batch-norm"](gather(holder))
    assert finding.layers == ("program.1.0",)
    assert finding.severity == ("error" if training else "info")


class Function(nn.Module):
    def __init__(self, *, training):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))
        self.always = training

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.variance, training=self.always)


@pytest.mark.parametrize(("training", "severity"), [(True, "error"), (False, "info")])
def test_a_symbolic_trace_of_a_function_is_read(training, severity):
    graph = fx.symbolic_trace(Function(training=training))
    assert [finding.severity for finding in diagnose_export(graph)] == [severity]


def test_a_file_needs_its_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(ImportError, match=r"reading the ONNX file '.*net.onnx' needs onnx"):
        diagnose_export(tmp_path / "net.onnx")


def test_what_is_no_program_is_refused():
    with pytest.raises(TypeError, match=r"`program` is a Linear: pass what torch.export.export re"):
        diagnose_export(nn.Linear(2, 2))
