"""The rule on batch norms that only look frozen."""

from collections.abc import Iterator
from typing import Any

from bnkit.diagnosis.evidence import Evidence, Norm
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules.distances import distance
from bnkit.diagnosis.rules.fixes import become
from bnkit.diagnosis.rules.places import (
    is_functional_batch_norm,
    is_told_to_train,
)
from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.moments import Moments


def frozen_but_batch_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that somebody froze, and that still normalise by the mini-batch."""
    trains = any(parameter.requires_grad for parameter in evidence.model.parameters())
    for norm in evidence.norms:
        how = _how_frozen(norm.module, others_train=trains)
        if how and norm.module.training:
            yield _frozen(norm, how)
    for call in () if evidence.flow is None else evidence.flow.calls:
        if call.module is None and is_functional_batch_norm(call) and is_told_to_train(call):
            yield Finding(
                "frozen-but-batch-statistics",
                "warning",
                (call.scope,),
                {"how": "training=True in eval mode"},
                "This functional batch norm is told to train in eval mode, too: it normalises by "
                "the mini-batch, so the answer for one example depends on the others.",
                "Call it with training=self.training, or use a layer.",
            )


def _how_frozen(module: Any, *, others_train: bool) -> str:
    """Return in which way somebody meant to freeze this layer, "" for none."""
    if isinstance(module, FrozenBatchNorm) or getattr(module, "running_mean", None) is None:
        return ""
    if getattr(module, "track_running_stats", True) is False:
        return "track_running_stats=False"
    if getattr(module, "momentum", None) == 0:
        return "momentum=0"
    own = list(module.parameters(recurse=False))
    if own and not any(parameter.requires_grad for parameter in own):
        return "requires_grad=False" if others_train else "requires_grad=False, as all the model"
    return ""


def _frozen(norm: Norm, how: str) -> Finding:
    module: Any = norm.module
    measured: dict[str, Any] = {"how": how}
    if norm.as_trained:
        seen = norm.as_trained[0].moments
        mean, variance = module.running_mean.to(seen.mean), module.running_var.to(seen.mean)
        running = Moments(seen.count, mean, variance * seen.count)
        measured["running statistics from those of the mini-batches"] = distance(
            module, running, seen
        )
    return Finding(
        "frozen-but-batch-statistics",
        "warning",
        (norm.path,),
        measured,
        "This batch norm looks frozen, but in training mode it normalises by the mini-batch all "
        "the same" + (", and its running statistics move." if "grad" in how else "."),
        "Put the layer in eval mode after each model.train(), or bnkit.convert(model, "
        '"frozen"), which stays frozen.',
        become("frozen", norm.path),
    )
