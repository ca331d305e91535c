"""Rules about export: batch norms that must not be, or need not be, in a deployed program."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import fx, nn

from bnkit.behaviour import behaviour_of
from bnkit.diagnosis.evidence import Evidence
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.fix import Fix, by_edit
from bnkit.diagnosis.rules.fixes import edit
from bnkit.diagnosis.rules.programs import findings_of, remnants_of_graph
from bnkit.diagnosis.rules.reading import functions, readings
from bnkit.internals import AnyBatchNorm
from bnkit.moments import Moments
from bnkit.norms import is_to_be_tried, why_same_in_both_modes


def training_mode_export(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that take the mini-batch's statistics in a model that is in eval mode."""
    yield from _always_by_batch(evidence)
    if not evidence.in_eval_mode:
        return
    for norm in evidence.norms:
        if norm.module.training and why_same_in_both_modes(evidence.model, norm.module) is None:
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


def _always_by_batch(evidence: Evidence) -> Iterator[Finding]:
    """Find layers whose class normalises by the mini-batch in every mode, as a trial shows."""
    for norm in evidence.norms:
        tried = is_to_be_tried(norm.module) and _may_hold(norm.module)
        if not tried or not behaviour_of(norm.module).by_batch_in_eval:
            continue
        yield Finding(
            "training-mode-export",
            "error" if evidence.in_eval_mode else "warning",
            (norm.path,),
            {"kind": norm.kind},
            "This class normalises by the mini-batch in eval mode, too: the output for one example "
            "depends on the others, and its running statistics are used nowhere.",
            "Let its forward pass training=self.training to batch_norm, or use a layer of torch's.",
        )


def _may_hold(module: nn.Module) -> bool:
    """Return whether it holds running statistics: a layer without any is another finding."""
    return not (isinstance(module, AnyBatchNorm) and module.running_mean is None)


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
