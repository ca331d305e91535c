"""What `model.export` makes before and after `fold`, and what the doctor says of the files."""

import keras
import numpy as np
import pytest
import torch
from keras import layers as L

import bnkit.keras as bnk
from bnkit.diagnosis.diagnosing import diagnose_export
from bnkit.keras.kernels import array_of
from keras_models import alive

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="this backend writes other formats"
)


def network():
    """Two convs with batch norm and ReLU, pooling and a dense layer."""
    layers = [
        *(L.Conv2D(8, 3, use_bias=False), L.BatchNormalization(), L.ReLU()),
        *(L.Conv2D(8, 3, use_bias=False), L.BatchNormalization(), L.ReLU()),
        *(L.GlobalAveragePooling2D(), L.Dense(3)),
    ]
    return alive(keras.Sequential([keras.Input((12, 12, 3)), *layers]))


def exported(model, path):
    model.export(path, format="torch", verbose=False)
    return torch.export.load(path)


def operations(program):
    return [node for node in program.graph.nodes if node.op == "call_function"]


def test_a_folded_model_is_exported_with_fewer_operations_and_the_doctor_is_content(tmp_path):
    model = network()
    small, x = bnk.fold(model), torch.randn(1, 12, 12, 3)
    before, after = (exported(m, tmp_path / f"{n}.pt2") for n, m in enumerate((model, small)))
    np.testing.assert_allclose(
        array_of(after.module()(x)), array_of(before.module()(x)), rtol=1e-4, atol=1e-6
    )
    # a batch norm is subtract, add, rsqrt, multiply, multiply, add, and as many casts
    assert len(operations(before)) - len(operations(after)) >= 2 * 6
    (finding,) = diagnose_export(tmp_path / "0.pt2").findings
    assert finding.measured == {"batch norms": 2, "fed by": "conv2d"}
    assert "bnkit.keras.fold" in finding.fix
    assert diagnose_export(tmp_path / "1.pt2").findings == ()
    assert diagnose_export(before).findings[0].measured == finding.measured


@pytest.mark.filterwarnings("ignore")  # torch calls the exporter that Keras uses an old one
def test_a_batch_norm_in_an_onnx_file_is_found(tmp_path):
    pytest.importorskip("onnx")
    model = network()
    small, x = bnk.fold(model), np.zeros((1, 12, 12, 3), "float32")
    for name, each in (("before", model), ("after", small)):
        each(x)  # without a call Keras does not export to ONNX
        each.export(tmp_path / f"{name}.onnx", format="onnx", verbose=False)
    (finding,) = diagnose_export(tmp_path / "before.onnx").findings
    assert finding.measured == {"batch norms": 2, "fed by": "Conv"}
    assert diagnose_export(tmp_path / "after.onnx").findings == ()
