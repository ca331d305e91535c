"""ONNX programs of torch's own exporters are read and told right."""

import pytest
import torch
from torch import nn

from bnkit.diagnosis import diagnose_export
from bnkit.surgery import fold

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
pytest.importorskip("onnxscript", reason="torch's exporter needs onnxscript")

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters use what torch has deprecated


class Network(nn.Module):
    """A batch norm behind a convolution, and one that is fed by an activation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.last = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.last(self.body(x).relu())


def exported(model, **options):
    return torch.onnx.export(model, (X,), dynamo=True, verbose=False, **options)


def test_layers_have_the_paths_that_they_had_in_the_model(tmp_path):
    program = exported(Network().eval(), optimize=False)
    program.save(tmp_path / "net.onnx")
    for each in (program, tmp_path / "net.onnx"):
        found = diagnose_export(each)
        assert (found.batch_norms, found.worst) == (2, "info")
        assert [finding.layers for finding in found] == [("body.1",), ("last",)]
        assert found.findings[0].measured["fed by"] == "Conv"


def test_what_the_exporter_folds_itself_is_gone():
    assert [finding.layers for finding in diagnose_export(exported(Network().eval()))] == [
        ("last",)
    ]


def test_a_folded_model_has_only_what_could_not_be_folded():
    program = exported(fold(Network().eval(), X), optimize=False)
    assert [finding.layers for finding in diagnose_export(program)] == [("last",)]


def test_a_batch_norm_in_training_mode_is_an_error(tmp_path):
    path = str(tmp_path / "net.onnx")
    mode = torch.onnx.TrainingMode.TRAINING
    torch.onnx.export(Network().train(), (X,), path, dynamo=False, training=mode)
    found = diagnose_export(path)
    assert (found.worst, found.batch_norms) == ("error", 2)
