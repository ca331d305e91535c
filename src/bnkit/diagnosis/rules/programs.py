"""The batch norms that exported programs still hold: of torch.export, torch.fx and ONNX."""

import importlib
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules.single_steps import Step, batch_norms_in_steps
from bnkit.extras import require

_TRAINING = "training"

# The functions to which exporters lower a batch norm, each with `training` at this position.
_POSITION = 5
_LOWERED = frozenset(
    """
    batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional
    _batch_norm_impl_index cudnn_batch_norm miopen_batch_norm
    """.split()
)
# Those that know one mode only.
_IN_EVAL = ("_native_batch_norm_legit_no_training", "_batch_norm_no_update")
_IN_TRAINING = ("_batch_norm_with_update", "_batch_norm_with_update_functional", "batch_norm_stats")

SINGLE_STEPS = "single steps"  # for the operation of a batch norm that has none of its own

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


def findings_of(remnants: Iterable[Remnant]) -> Iterator[Finding]:
    """Yield the findings on what a program still holds: an error, then information."""
    found = list(remnants)
    training = [r for r in found if r.training]
    in_steps = [r for r in found if r.operation == SINGLE_STEPS]
    fed = [r for r in found if not r.training and r.feeder and r not in in_steps]
    others = [r for r in found if not r.training and not r.feeder and r not in in_steps]
    if training:
        yield Finding(
            "exported-batch-norm",
            "error",
            _layers(training),
            {"batch norms": len(training), "operation": training[0].operation},
            "The program normalises by the statistics of the mini-batch that it is given.",
            "Call model.eval() and export again. A layer without running statistics needs some "
            "first.",
        )
    if fed:
        yield Finding(
            "exported-batch-norm",
            "info",
            _layers(fed),
            {"batch norms": len(fed), "fed by": fed[0].feeder},
            "The program computes batch norms that could be part of the weights before them.",
            "Fold before the export: model = bnkit.fold(model.eval(), example).",
        )
    if in_steps:
        feeders = ", ".join(sorted({remnant.feeder for remnant in in_steps} - {""}))
        yield Finding(
            "exported-batch-norm",
            "info",
            _layers(in_steps),
            {"batch norms": len(in_steps), **({"fed by": feeders} if feeders else {})},
            "The program computes batch norms in single steps (subtract, multiply, add), which no "
            "tool behind the export takes for one.",
            "Fold before the export: bnkit.keras.fold(model) in Keras, and in torch "
            "bnkit.fold(model.eval(), example).",
        )
    if others:
        yield Finding(
            "exported-batch-norm",
            "info",
            _layers(others),
            {"batch norms": len(others)},
            "The program computes batch norms that no dense or conv layer alone feeds.",
            "bnkit.surgery.plan_folding(model, example) says whether the layer after them can take "
            "them.",
        )


def _layers(remnants: list[Remnant]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(remnant.path for remnant in remnants))


def remnants_in(program: Any) -> Iterable[Remnant]:
    """Return the batch norms of a program or a file, which `diagnose_export` describes."""
    if isinstance(program, str | Path):
        path = Path(program)
        if not path.is_file():
            raise FileNotFoundError(f"`program` is {str(path)!r}, and there is no such file")
        in_archive = path.suffix == ".pt2"
        return _remnants_of_archive(path) if in_archive else remnants_of_onnx(_onnx(path))
    if isinstance(program, torch.export.ExportedProgram):
        given = program.graph_signature.user_inputs
        return [*remnants_of_graph(program.graph), *_in_steps(_steps_of(program.graph), given)]
    if isinstance(program, fx.GraphModule):
        given = [node.name for node in program.graph.nodes if node.op == "placeholder"]
        return [*remnants_of_graph(program.graph), *_in_steps(_steps_of(program.graph), given)]
    proto = getattr(program, "model_proto", program)  # of torch.onnx.ONNXProgram
    if hasattr(getattr(proto, "graph", None), "node"):
        return remnants_of_onnx(proto)
    raise TypeError(
        f"`program` is a {type(program).__name__}: pass what torch.export.export returned, a "
        f"torch.fx.GraphModule, an ONNX ModelProto or the path of a file of either"
    )


def _in_steps(steps: Iterable[Step], given: Iterable[Any]) -> Iterator[Remnant]:
    for step, feeder in batch_norms_in_steps(steps, map(str, given), _is_weights):
        yield Remnant(step.path or step.makes, SINGLE_STEPS, training=False, feeder=feeder)


# Graphs of torch.export and torch.fx


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
            yield Remnant(_path(node, node.name), operation, training, _feeder(node))


def _steps_of(graph: fx.Graph) -> Iterator[Step]:
    for node in graph.nodes:
        if node.op == "call_function":
            reads = tuple(each.name for each in node.all_input_nodes)
            yield Step(_operation(node), reads, node.name, _path(node, ""))


def _operation(node: fx.Node) -> str:
    """Return the name of the function that a node calls, without namespace and overload."""
    if node.op != "call_function":
        return ""
    target: Any = node.target
    name = getattr(target, "_opname", None) or getattr(target, "__name__", str(target))
    return str(name).partition(".")[0]


def _training_of(node: fx.Node, operation: str) -> bool | None:
    """Return whether this batch norm takes the statistics of its input; None for other nodes."""
    at, named = node.args[_POSITION : _POSITION + 1], node.kwargs.get(_TRAINING, False)
    overload = getattr(node.target, "_overloadname", "")
    return _takes_batch_statistics(operation, overload, training=(*at, named)[0] is True)


def _takes_batch_statistics(operation: str, overload: str, *, training: bool) -> bool | None:
    if operation in _IN_EVAL or operation in _IN_TRAINING:
        return operation in _IN_TRAINING
    if operation not in _LOWERED:
        return None
    return training or overload == "no_stats"  # without running statistics there is no other way


def _path(node: fx.Node, default: str) -> str:
    """Return the path of the module in which the node was traced."""
    stack: Any = node.meta.get("nn_module_stack") or {}
    paths = [place[0] for place in stack.values() if isinstance(place, tuple)]
    return str(paths[-1]) if paths else default


def _feeder(node: fx.Node) -> str:
    source = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(source, fx.Node) or len(source.users) > 1:
        return ""
    operation = _operation(source)
    return operation if _is_weights(operation) else ""


def _is_weights(operation: str) -> bool:
    return operation in _ONNX_WEIGHTS or any(word in operation for word in _WEIGHTS)


# Files of torch.export.save


# The graph of a program is in one member of the archive, as JSON; torch 2.7 and older had one file.
# Everything else there may be a pickle, which can run code (the weights, constants and sample
# inputs), and torch.export.load reads it. None of it is needed here.
_MODELS = re.compile(r"(.*/)?models/[^/]+\.json|serialized_exported_program\.json")
_LARGEST = 256 * 2**20  # bytes of JSON: some 100,000 nodes, each with its stack trace


def _remnants_of_archive(path: Path) -> list[Remnant]:
    what = f"`program` is {str(path)!r}, which is not a file of torch.export.save"
    try:
        return [r for text in _models_in(path) for r in _remnants_of_document(json.loads(text))]
    except OSError:
        raise
    # Whatever zipfile, json and a document of another form raise: no exception is theirs alone.
    except Exception as error:
        raise ValueError(f"{what}: {type(error).__name__}: {error}") from error


def _models_in(path: Path) -> Iterator[bytes]:
    """Yield the texts of the graphs in an archive, at most so much of it as a program has."""
    left = _LARGEST
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if _MODELS.fullmatch(name)]
        if not members:
            raise ValueError("it holds no graph (models/*.json)")
        for name in members:
            with archive.open(name) as member:
                text = member.read(left + 1)  # the size that the archive states may be a lie
            left -= len(text)
            if left < 0:
                raise ValueError(f"its graph has more than {_LARGEST:,} bytes")
            yield text


def _remnants_of_document(document: Any) -> Iterator[Remnant]:
    """Yield the batch norms of a graph as torch.export.save writes it (torch._export.serde)."""
    graph = document["graph_module"]["graph"]
    nodes = graph["nodes"]
    makers = {name: node for node in nodes for name in _names(node["outputs"])}
    readers = Counter(name for node in nodes for name in set(_names(node["inputs"])))
    readers.update(set(_names(graph["outputs"])))
    for node in nodes:
        operation, overload = _target(node)
        given = {each["name"]: each["arg"] for each in node["inputs"]}
        takes = given.get(_TRAINING, {}).get("as_bool") is True
        training = _takes_batch_statistics(operation, overload, training=takes)
        if training is not None:
            (source, *_) = _names(node["inputs"][:1])
            feeder = _target(makers[source])[0] if source in makers else ""
            taken = _is_weights(feeder) and readers[source] == 1
            path = _path_in(node["metadata"].get("nn_module_stack", ""))
            (name, *_) = _names(node["outputs"])
            yield Remnant(path or name, operation, training, feeder if taken else "")
    specs = [
        spec.get("user_input") for spec in document["graph_module"]["signature"]["input_specs"]
    ]
    called_with = [name for spec in specs if spec for name in _names(spec)]
    yield from _in_steps(map(_step_in, nodes), called_with)


def _step_in(node: Any) -> Step:
    (makes, *_) = (*_names(node["outputs"]), "")
    path = _path_in(node["metadata"].get("nn_module_stack", ""))
    return Step(_target(node)[0], tuple(_names(node["inputs"])), makes, path)


def _target(node: Any) -> tuple[str, str]:
    """Return operation and overload: those of "torch.ops.aten.conv2d.default" are its last two."""
    names = [*node["target"].split("."), ""]
    return (names[3], names[4]) if names[:2] == ["torch", "ops"] else (names[-2], "")


def _names(tree: Any) -> Iterator[str]:
    """Yield the names of the tensors in a tree of arguments, in order."""
    if isinstance(tree, list):
        for item in tree:
            yield from _names(item)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            if key == "as_tensor":
                yield value["name"]
            elif key == "as_tensors":
                yield from (each["name"] for each in value)
            elif key in ("arg", "as_optional_tensor", "as_optional_tensors"):
                yield from _names(value)


def _path_in(stack: str) -> str:
    """Return the path of the innermost module of a stack, "key,path,class;key,path,class"."""
    return ",".join(stack.rpartition(";")[2].split(",")[1:-1])


# ONNX


def _onnx(path: Path) -> Any:
    require("onnx", f"reading the ONNX file {str(path)!r}")
    onnx = importlib.import_module("onnx")
    what = f"`program` is {str(path)!r}, which is not an ONNX file"
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # of protobuf, which has no name that is to stay
        raise ValueError(f"{what}: {error}") from error
    if not model.graph.node:
        raise ValueError(f"{what}: it has no graph")
    return model


def remnants_of_onnx(model: Any) -> Iterator[Remnant]:
    """Yield the batch norms of an ONNX ModelProto, in its functions and in branches, too.

    `BatchNormalization` is in training mode if its attribute `training_mode` is 1 (since opset 14)
    or it has more than one output (before).
    """
    graph = model.graph
    yield from _of_onnx_graph(graph)
    stored = {each.name for each in graph.initializer}
    steps = (
        Step(node.op_type, tuple(node.input), next(iter(node.output), ""), _path_of_scopes(node))
        for node in graph.node
    )
    yield from _in_steps(steps, [each.name for each in graph.input if each.name not in stored])
    for function in getattr(model, "functions", ()):
        yield from _of_onnx_graph(function)


def _of_onnx_graph(graph: Any) -> Iterator[Remnant]:
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in set(node.input))
    readers.update(getattr(output, "name", output) for output in graph.output)
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            flags = {a.name: a.i for a in node.attribute}
            outputs = [name for name in node.output if name]
            training = flags.get("training_mode", 0) == 1 or len(outputs) > 1
            feeder = getattr(makers.get(node.input[0]), "op_type", "")
            alone = readers[node.input[0]] == 1
            taken = feeder if alone and feeder in _ONNX_WEIGHTS else ""
            path = _path_of_scopes(node) or node.name or node.output[0]
            yield Remnant(path, node.op_type, training, taken)
        for attribute in node.attribute:
            for branch in (getattr(attribute, "g", None), *getattr(attribute, "graphs", ())):
                yield from _of_onnx_graph(branch) if getattr(branch, "node", None) else ()


def _path_of_scopes(node: Any) -> str:
    """Return the path of the layer that torch's exporter keeps, "" where there is none."""
    kept = {each.key: each.value for each in getattr(node, "metadata_props", ())}
    # As text: "['', 'layer1', 'layer1.0.bn1', 'batch_norm']", the operation last.
    scopes = re.findall("'([^']*)'", kept.get("pkg.torch.onnx.name_scopes", ""))
    return scopes[-2] if len(scopes) > 1 else ""
