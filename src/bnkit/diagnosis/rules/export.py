"""Rules about export: batch norms that must not be, or need not be, in a deployed program.

`diagnose_export` looks at a program that has been exported already.
"""

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnkit.diagnosis.evidence import Evidence, Norm
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.mend import Mend, altering
from bnkit.diagnosis.rules.exported import Remnant, remnants_of_graph, remnants_of_onnx
from bnkit.diagnosis.rules.reading import functions, readings
from bnkit.diagnosis.rules.rule import Rule
from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.moments import Moments
from bnkit.surgery import alterations


def training_mode_export(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that take the mini-batch's statistics in a model that is in eval mode."""
    if not evidence.in_eval_mode:
        return
    for norm in evidence.norms:
        if norm.module.training and not isinstance(norm.module, FrozenBatchNorm):
            yield _in_training_mode(norm)
    for reading in readings(evidence):
        if isinstance(reading.module, _BatchNorm) and reading.running_mean is None:
            yield _without_statistics(reading.path, reading.moments)
    for scope in dict.fromkeys(
        f.call.scope for f in functions(evidence.flow) if f.normalises_by_batch
    ):
        yield Finding(
            "training-mode-export",
            "error",
            (scope,),
            {"function": "batch_norm"},
            "In eval mode this forward calls batch_norm with training=True or without running "
            "statistics, or a layer that is no registered module and never hears of eval().",
            "Pass training=self.training, or register the layer as a module.",
        )


def _in_training_mode(norm: Norm) -> Finding:
    return Finding(
        "training-mode-export",
        "error",
        (norm.path,),
        {"kind": norm.kind},
        "The model is in eval mode and this layer in training mode: it normalises by the "
        "mini-batch, and an exported program would, too, and write into its statistics.",
        "Call model.eval() last, and look for a train() method that keeps the layer in training.",
        _out_of_training(norm.path),
    )


def _out_of_training(path: str) -> Mend:
    def change(model: nn.Module) -> None:
        alterations.leave_training(model, path)

    return altering(path, "leave_training", change, action="leave training mode")


def _without_statistics(path: str, moments: Moments | None) -> Finding:
    return Finding(
        "training-mode-export",
        "warning",
        (path,),
        {"running statistics": 0},
        "The layer has no running statistics, so in eval mode, too, it normalises by the "
        "mini-batch: what the model says of one example depends on the others.",
        "Make it with track_running_stats=True and train, or measure statistics for it.",
        _given_statistics(path, moments),
    )


def _given_statistics(path: str, moments: Moments | None) -> Mend | None:
    if moments is None:
        return None

    def change(model: nn.Module) -> None:
        alterations.track_statistics(model, path)
        layer: Any = model.get_submodule(path)
        layer.running_mean.copy_(moments.mean)
        layer.running_var.copy_(moments.unbiased_variance)
        layer.num_batches_tracked.fill_(1)

    return altering(path, "track_statistics", change, action="hold statistics", measures=True)


def exported_batch_norm(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms in the graphs that a model holds: what torch.export or torch.fx made."""
    for path, module in evidence.model.named_modules():
        if isinstance(module, fx.GraphModule):
            for finding in _findings(remnants_of_graph(module.graph)):
                yield _below(path, finding)


def _below(path: str, finding: Finding) -> Finding:
    layers = tuple(f"{path}.{layer}" if path else layer for layer in finding.layers)
    return Finding(
        finding.rule, finding.severity, layers, finding.measured, finding.why, finding.fix
    )


def diagnose_export(program: Any) -> tuple[Finding, ...]:
    """Return the findings on the batch norms that an exported program still holds, worst first.

    `program` is a torch.export.ExportedProgram, a torch.fx.GraphModule, an ONNX ModelProto, what
    torch.onnx.export returns, or the path of a file: of torch.export.save where it ends in .pt2,
    else of ONNX, which needs the package onnx. A
    batch norm in training mode is an error: the program normalises by whatever examples come
    together. One in eval mode is information: it costs time that `bnkit.fold` before the export
    saves, where a dense or conv layer feeds it. `layers` are the paths of the exported layers where
    the program knows them, else the names of its nodes.

    Raises TypeError for what is no program, ImportError for an ONNX file without the package onnx,
    FileNotFoundError for a path without a file and ValueError for a file of something else.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).train()
    >>> program = torch.export.export(model, (torch.ones(4, 2),))
    >>> [(finding.severity, finding.layers) for finding in diagnose_export(program)]
    [('error', ('1',))]
    """
    return tuple(_findings(_remnants(program)))


def _remnants(program: Any) -> Iterable[Remnant]:
    if isinstance(program, str | Path):
        program = _load(Path(program))
    if isinstance(program, torch.export.ExportedProgram | fx.GraphModule):
        return remnants_of_graph(program.graph)
    proto = getattr(program, "model_proto", program)  # of torch.onnx.ONNXProgram
    if hasattr(getattr(proto, "graph", None), "node"):
        return remnants_of_onnx(proto)
    raise TypeError(
        f"`program` is a {type(program).__name__}: pass what torch.export.export returned, a "
        f"torch.fx.GraphModule, an ONNX ModelProto or the path of a file of either"
    )


def _load(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"`program` is {str(path)!r}, and there is no such file")
    return _load_torch(path) if path.suffix == ".pt2" else _load_onnx(path)


def _load_torch(path: Path) -> Any:
    what = f"`program` is {str(path)!r}, which is no file of torch.export.save"
    if not is_zipfile(path):  # torch would log pages on it
        raise ValueError(what)
    try:
        return torch.export.load(path)
    except Exception as error:  # whatever torch raises for another archive
        raise ValueError(f"{what}: {error}") from error


def _load_onnx(path: Path) -> Any:
    try:
        onnx = importlib.import_module("onnx")  # no dependency: only its users have such files
    except ImportError as error:
        raise ImportError(
            f"`program` is the path {str(path)!r}, and reading ONNX files needs the package onnx: "
            f"install it, or pass the torch.export.ExportedProgram"
        ) from error
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # of protobuf, which has no name that is to stay
        raise ValueError(f"`program` is {str(path)!r}, which is no ONNX file: {error}") from error
    if not model.graph.node:
        raise ValueError(f"`program` is {str(path)!r}, which is no ONNX file: it has no graph")
    return model


def _findings(remnants: Iterable[Remnant]) -> Iterator[Finding]:
    found = list(remnants)
    training = [r for r in found if r.training]
    fed = [r for r in found if not r.training and r.feeder]
    others = [r for r in found if not r.training and not r.feeder]
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


RULES: tuple[Rule, ...] = (
    Rule(
        "training-mode-export",
        "A batch norm takes the mini-batch's statistics in a model that is in eval mode.",
        training_mode_export,
    ),
    Rule(
        "exported-batch-norm",
        "An exported program still holds a batch norm, in training mode or unfolded.",
        exported_batch_norm,
    ),
)
