"""ONNX files and torch.export programs, made here, that still hold batch norms, and that do not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import bnkit
from bnkit.diagnosis import diagnose_export
from cases import seeded

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
STATE = ("s", "b", "m", "v")  # scale, bias, mean, variance


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    model(torch.randn(8, 3, 6, 6, generator=seeded(0)))
    return model.eval()


def conv(output="c"):
    return helper.make_node("Conv", ["x", "w"], [output], name="/0/Conv")


def norm(*outputs, source="c", **attributes):
    outputs = ["y", *outputs]
    return helper.make_node(
        "BatchNormalization", [source, *STATE], outputs, name="/1/BatchNormalization", **attributes
    )


def weights(shape=(4, 3, 3, 3)):
    sizes = {"w": shape} | dict.fromkeys(STATE, (4,))
    return [onnx.numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in sizes.items()]


def graph(*nodes, outputs=("y",), inputs=("x",), initializer=()):
    def values(names):
        return [helper.make_tensor_value_info(name, FLOAT, [*"nchw"]) for name in names]

    return helper.make_graph(nodes, "net", values(inputs), values(outputs), initializer=initializer)


def model(*nodes, opset=15, functions=(), **options):
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    made = graph(*nodes, initializer=weights(), **options)
    return helper.make_model(made, opset_imports=opsets, functions=functions)


def branching():
    """Return a model whose batch norm lies in one of the two branches of an If."""
    both = {
        name: graph(node, inputs=())
        for name, node in (
            ("then_branch", norm(source="x")),
            ("else_branch", helper.make_node("Identity", ["x"], ["y"])),
        )
    }
    return model(helper.make_node("If", ["which"], ["y"], **both), inputs=("which", "x"))


def with_function():
    opsets = [helper.make_opsetid("", 15)]
    inputs = ["c", *STATE]
    function = helper.make_function(
        "own", "Norm", inputs, ["y"], [norm("rm", "rv", training_mode=1)], opsets
    )
    call = helper.make_node("Norm", inputs, ["y"], domain="own")
    return model(conv(), call, functions=[function])


@pytest.mark.parametrize("as_file", [True, False], ids=["a file", "a message"])
@pytest.mark.parametrize(
    ("build", "severity"),
    [
        (lambda: model(conv(), norm("rm", "rv", training_mode=1)), "error"),
        (lambda: model(conv(), norm("rm", "rv"), opset=9), "error"),
        (with_function, "error"),
        (lambda: model(conv(), norm()), "info"),
        (branching, "info"),
    ],
    ids=["opset 15", "before opset 14", "in a function", "unfolded", "in a branch"],
)
def test_batch_norms_of_onnx_models_are_found(build, severity, as_file, tmp_path):
    program = build()
    if as_file:
        onnx.save(program, tmp_path / "net.onnx")
        program = tmp_path / "net.onnx"
    (finding,) = diagnose_export(program)
    assert (finding.severity, finding.layers) == (severity, ("/1/BatchNormalization",))


@pytest.mark.parametrize(
    ("build", "fed"),
    [
        (lambda: model(conv(), norm()), True),
        (lambda: model(conv(), norm(), outputs=("y", "c")), False),
        (
            lambda: model(
                conv(), norm(), helper.make_node("Relu", ["c"], ["z"]), outputs=("y", "z")
            ),
            False,
        ),
    ],
    ids=["it alone reads the convolution", "that leaves the model", "that another one reads"],
)
def test_only_what_a_convolution_feeds_alone_is_to_be_folded(build, fed):
    (finding,) = diagnose_export(build())
    assert ("fed by" in finding.measured) is fed
    assert ("bnkit.fold" in finding.fix) is fed


@pytest.mark.parametrize("opset", [9, 15])
def test_a_folded_model_is_healthy(opset, tmp_path):
    folded = model(conv(), helper.make_node("Relu", ["c"], ["y"]), opset=opset)
    onnx.checker.check_model(folded)
    onnx.save(folded, tmp_path / "net.onnx")
    assert not diagnose_export(tmp_path / "net.onnx").findings
    assert not diagnose_export(str(tmp_path / "net.onnx")).findings


def test_what_torch_onnx_returns_is_read():
    (finding,) = diagnose_export(SimpleNamespace(model_proto=model(conv(), norm())))
    assert finding.measured["fed by"] == "Conv"


def test_a_program_of_torch_is_read_before_and_after_folding():
    x = torch.randn(2, 3, 6, 6, generator=seeded(1))
    (finding,) = diagnose_export(torch.export.export(network(), (x,)))
    assert (finding.severity, finding.layers) == ("info", ("1",))
    assert not diagnose_export(torch.export.export(bnkit.fold(network(), x), (x,))).findings
    (in_training,) = diagnose_export(torch.export.export(network().train(), (x,)))
    assert (in_training.severity, in_training.layers) == ("error", ("1",))


@pytest.mark.parametrize("content", [b"", b"this is no program"], ids=["empty", "damaged"])
def test_a_file_that_is_not_onnx_is_refused(content, tmp_path):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"`program` is '.*net\.onnx', which is not an ONNX"):
        diagnose_export(tmp_path / "net.onnx")


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx"):
        diagnose_export(tmp_path / "nowhere.onnx")
