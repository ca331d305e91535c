"""The batch norms of exported programs: graphs of torch.export, and ONNX models."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_TRAINING = "training"

# The position of the argument `training` in the functions to which exporters lower a batch norm.
_LOWERED: dict[str, int] = {
    "batch_norm": 5,
    "native_batch_norm": 5,
    "_native_batch_norm_legit": 5,
    "_native_batch_norm_legit_functional": 5,
    "_batch_norm_impl_index": 5,
    "cudnn_batch_norm": 5,
    "miopen_batch_norm": 5,
}
# Those that know one mode only.
_IN_EVAL = ("_native_batch_norm_legit_no_training", "_batch_norm_no_update")
_IN_TRAINING = ("_batch_norm_with_update", "_batch_norm_with_update_functional", "batch_norm_stats")

_WEIGHTS = ("conv", "linear", "addmm", "matmul", "mm")
_ONNX_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Remnant:
    """A batch norm of a program: where it comes from, and whether it is in training mode.

    `path` is that of the layer from which it was exported, the name of its node where the program
    does not say; `feeder` the operation of the weight layer that alone feeds it, "" for none.
    """

    path: str
    operation: str
    training: bool
    feeder: str = ""


def remnants_of_graph(graph: fx.Graph) -> Iterator[Remnant]:
    """Yield the batch norms of a graph of torch.export or torch.fx.

    >>> layer = torch.nn.BatchNorm1d(2).eval()
    >>> program = torch.export.export(torch.nn.Sequential(layer), (torch.ones(3, 2),))
    >>> [(remnant.path, remnant.training) for remnant in remnants_of_graph(program.graph)]
    [('0', False)]
    """
    for node in graph.nodes:
        operation = _operation(node)
        training = _training_of(node, operation)
        if training is not None:
            yield Remnant(_path(node), operation, training, _feeder(node))


def _operation(node: fx.Node) -> str:
    """Return the name of the function that a node calls, without namespace and overload."""
    if node.op != "call_function":
        return ""
    target: Any = node.target
    name = getattr(target, "_opname", None) or getattr(target, "__name__", str(target))
    return str(name).partition(".")[0]


def _training_of(node: fx.Node, operation: str) -> bool | None:
    """Return whether this batch norm takes the statistics of its input; None for other nodes."""
    if operation in _IN_EVAL or operation in _IN_TRAINING:
        return operation in _IN_TRAINING
    if operation not in _LOWERED:
        return None
    position = _LOWERED[operation]
    if getattr(node.target, "_overloadname", "") == "no_stats":
        return True
    if not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001  no public name
        position = 5  # torch.nn.functional.batch_norm in a graph of torch.fx
    given = node.args[position] if len(node.args) > position else node.kwargs.get(_TRAINING, False)
    return given is True


def _path(node: fx.Node) -> str:
    """Return the path of the module in which the node was traced, else its own name."""
    stack: Any = node.meta.get("nn_module_stack") or {}
    paths = [place[0] for place in stack.values() if isinstance(place, tuple)]
    return str(paths[-1]) if paths else node.name


def _feeder(node: fx.Node) -> str:
    source = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(source, fx.Node) or len(source.users) > 1:
        return ""
    operation = _operation(source)
    return operation if any(word in operation for word in _WEIGHTS) else ""


def remnants_of_onnx(model: Any) -> Iterator[Remnant]:
    """Yield the batch norms of an ONNX ModelProto, in its functions and in branches, too.

    `BatchNormalization` is in training mode if its attribute `training_mode` is 1 (since opset 14)
    or it has more than one output (before).
    """
    yield from _of_onnx_graph(model.graph)
    for function in getattr(model, "functions", ()):
        yield from _of_onnx_graph(function)


def _of_onnx_graph(graph: Any) -> Iterator[Remnant]:
    makers = {name: node for node in graph.node for name in node.output}
    leaving = {getattr(output, "name", output) for output in graph.output}
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            flags = {a.name: a.i for a in node.attribute}
            outputs = [name for name in node.output if name]
            training = flags.get("training_mode", 0) == 1 or len(outputs) > 1
            feeder = getattr(makers.get(node.input[0]), "op_type", "")
            readers = sum(node.input[0] in other.input for other in graph.node)
            alone = readers == 1 and node.input[0] not in leaving
            taken = feeder if alone and feeder in _ONNX_WEIGHTS else ""
            yield Remnant(node.name or node.output[0], node.op_type, training, taken)
        for attribute in node.attribute:
            for branch in (getattr(attribute, "g", None), *getattr(attribute, "graphs", ())):
                yield from _of_onnx_graph(branch) if getattr(branch, "node", None) else ()
