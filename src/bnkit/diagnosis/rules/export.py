"""Rules about export: batch norms that must not be, or need not be, in a deployed program."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import fx

from bnkit.diagnosis.evidence import Evidence
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.fix import Fix, by_edit
from bnkit.diagnosis.rules.fixes import edit
from bnkit.diagnosis.rules.programs import findings_of, remnants_of_graph
from bnkit.diagnosis.rules.reading import functions, readings
from bnkit.internals import AnyBatchNorm
from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.moments import Moments


def training_mode_export(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that take the mini-batch's statistics in a model that is in eval mode."""
    if not evidence.in_eval_mode:
        return
    for norm in evidence.norms:
        if norm.module.training and not isinstance(norm.module, FrozenBatchNorm):
            yield Finding(
                "training-mode-export",
                "error",
                (norm.path,),
                {"kind": norm.kind},
                "The model is in eval mode and this layer in training mode: it normalises by the "
                "mini-batch, and an exported program would, too, and write into its statistics.",
                "Call model.eval() last, and look for a train() method that keeps the layer in "
                "training.",
                by_edit(edit(norm.path, "leave_training", "leave training mode")),
            )
    for reading in readings(evidence):
        if isinstance(reading.module, AnyBatchNorm) and reading.running_mean is None:
            yield Finding(
                "training-mode-export",
                "warning",
                (reading.path,),
                {"running statistics": 0},
                "The layer has no running statistics, so even in eval mode it normalises by the "
                "mini-batch: the output for one example depends on the others.",
                "Make it with track_running_stats=True and train, or measure statistics for it.",
                _given_statistics(reading.path, reading.moments),
            )
    for scope in dict.fromkeys(
        f.call.scope for f in functions(evidence.flow) if f.normalises_by_batch
    ):
        yield Finding(
            "training-mode-export",
            "error",
            (scope,),
            {"function": "batch_norm"},
            "In eval mode this forward calls batch_norm with training=True or without running "
            "statistics, or a layer that is not a registered module, so eval() does not reach it.",
            "Pass training=self.training, or register the layer as a module.",
        )


def _given_statistics(path: str, moments: Moments | None) -> Fix | None:
    if moments is None:
        return None
    values = {
        "running_mean": moments.mean,
        "running_var": moments.unbiased_variance,
        "num_batches_tracked": torch.tensor(1),
    }
    held = edit(path, "track_statistics", "hold statistics", values=values)
    return by_edit(held, measures=True)


def exported_batch_norm(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms in the graphs that a model holds: what torch.export or torch.fx made."""
    for path, module in evidence.model.named_modules():
        if isinstance(module, fx.GraphModule):
            for finding in findings_of(remnants_of_graph(module.graph)):
                layers = (f"{path}.{layer}" if path else layer for layer in finding.layers)
                yield replace(finding, layers=tuple(layers))
