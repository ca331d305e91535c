"""Rules on how a batch norm is used: on how many values, how often, and if it only looks frozen."""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from bnkit.diagnosis.evidence import Evidence, Failure, Norm, Seen
from bnkit.diagnosis.finding import Finding, Severity
from bnkit.diagnosis.rules.distances import by_chance, distance
from bnkit.diagnosis.rules.fixes import become
from bnkit.diagnosis.rules.places import (
    Place,
    is_functional_batch_norm,
    is_told_to_train,
    normalises_by_batch,
    places,
)
from bnkit.diagnosis.rules.reading import QUARTER
from bnkit.diagnosis.runs import rows_of
from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.layers.masked import MaskedBatchNorm
from bnkit.moments import Moments


def one_value_per_channel(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that get one value per channel in a mini-batch of training.

    It has no variance, and torch raises an error for it. What counts is what the layer itself is
    given: of a large mini-batch one part of a network may get a single row.
    """
    # Of an example alone it is a warning: that may be smaller than the mini-batches.
    severity: Severity = "error" if evidence.batches_given else "warning"
    severity = "info" if evidence.in_eval_mode else severity
    found = _seen_short(evidence) | _short_by_rows(evidence) | _failed_short(evidence)
    for path, measured in found.items():
        yield Finding(
            "one-value-per-channel",
            severity,
            (path,),
            {**measured, "values per channel": 1},
            "In training this batch norm gets one value per channel, which has no variance: "
            "torch raises an error, and any that did not would give zeros.",
            "Use larger mini-batches, leave out those in which it gets one row (drop_last=True of "
            "the DataLoader, where it is the last one), or leave out batch norm after the pooling "
            "to 1×1.",
        )


def _seen_short(evidence: Evidence) -> dict[str, dict[str, int]]:
    """Return the layers that were given one value, with the mini-batch in which they were."""
    norms = (n for n in evidence.norms if _trains_alone(evidence, n))
    short = ((norm, seen) for norm in norms for seen in norm.as_trained if seen.fewest <= 1)
    return {norm.path: smallest_mini_batch(evidence, seen) for norm, seen in short}


def _trains_alone(evidence: Evidence, norm: Norm) -> bool:
    """Return whether the values of its own mini-batch are all by which it normalises."""
    others = "sync" in norm.kind.lower() or isinstance(norm.module, MaskedBatchNorm)
    return normalises_by_batch(evidence, norm) and not others


def smallest_mini_batch(evidence: Evidence, seen: Seen) -> dict[str, int]:
    """Return the number of the mini-batch in which a layer got the fewest values, in words.

    Where it is the last one of a loader, it is the rows that were left over.
    """
    loader = evidence.loader
    remainder = loader.length % loader.batch_size if loader.length and loader.batch_size else 0
    last = seen.smallest == len(loader.rows) and remainder == loader.rows[-1]
    if remainder and last and not loader.drops_last:
        return {f"rows of the last mini-batch ({loader.length} % {loader.batch_size})": remainder}
    return {"mini-batch": seen.smallest}


def _short_by_rows(evidence: Evidence) -> dict[str, dict[str, int]]:
    """Return what runs on the example and was not seen in mini-batches, by the rows of these."""
    sizes, found = rows_in_training(evidence), dict[str, dict[str, int]]()
    for place in places(evidence):
        if not place.trains or (place.norm is not None and not _unseen(evidence, place.norm)):
            continue
        per_row = _values_per_row(evidence, place)
        short = {what: rows for what, rows in sizes.items() if 0 < rows * per_row <= 1}
        if short:
            found[place.path] = dict(list(short.items())[:1])
    return found


def _unseen(evidence: Evidence, norm: Norm) -> bool:
    return _trains_alone(evidence, norm) and not norm.as_trained


def _failed_short(evidence: Evidence) -> dict[str, dict[str, int]]:
    """Return the layers in which training failed for the lack of values."""
    failures = [each for each in reversed(evidence.failures) if each.lacks_values]
    return {each.layer or "": {"mini-batch": each.number} for each in failures}


def fails_in_training(evidence: Evidence) -> Iterator[Finding]:
    """Find mini-batches on which the training fails in a batch norm, or alone among others."""
    failures = [each for each in evidence.failures if not each.lacks_values]
    by_place: dict[str, list[Failure]] = defaultdict(list)
    for failure in failures:
        by_place[failure.layer or ""].append(failure)
    total = len(evidence.loader.rows)
    for path, found in by_place.items():
        of_batch_norm = evidence.norm(path) is not None
        if not of_batch_norm and len(evidence.failures) == total:
            continue  # it lacks more than a mini-batch, such as targets: `not_run` says so
        yield Finding(
            "fails-in-training",
            "info" if evidence.in_eval_mode else "error",
            (path,),
            {"mini-batch": found[0].number, "mini-batches that fail": len(found), "of": total},
            f"In training mode the model fails: {found[0].error}.",
            "Look at this mini-batch, and at what the layer is given for it.",
        )


def checkpointed_twice(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that activation checkpointing updates again in the backward."""
    if evidence.step is None:
        return
    twice = evidence.step.written_in_forward & evidence.step.written_in_backward
    written = {name.rpartition(".")[0] for name in twice}
    norms = {norm.path for norm in evidence.norms}
    functional = {place.path for place in places(evidence) if place.norm is None}
    found = written & (norms | functional)
    for path in (path for path, _ in evidence.model.named_modules() if path in found):
        yield Finding(
            "checkpointed-twice",
            "warning",
            (path,),
            {"updates in the forward": 1, "updates in the backward": 1},
            "Activation checkpointing runs the forward again in the backward, and the running "
            "statistics take the same mini-batch twice: the momentum is 1 − (1 − m)² instead of m.",
            "Use bnkit's batch norms, which see that they are recomputed: "
            'model = bnkit.convert(model, "bnkit").'
            if path in norms
            else "Use a layer of bnkit's instead, which sees that it is recomputed.",
            become("bnkit", path) if path in norms else None,
        )


def two_forwards(evidence: Evidence) -> Iterator[Finding]:
    """Find DistributedDataParallel that sends buffers again between a forward and its backward."""
    for parallel in evidence.parallel:
        prefix = f"{parallel.path}." if parallel.path else ""
        inside = [norm for norm in evidence.norms if norm.path.startswith(prefix)]
        calls = [len(norm.training_calls or norm.calls) for norm in inside]
        ran = [number for number in calls if number]
        if not inside or not parallel.broadcasts_buffers:
            continue
        seen = bool(parallel.path and ran and min(ran) > 1)
        runs = "If the model runs twice before one backward,"
        if seen:
            runs = "This part of the model runs twice before one backward, and"
        yield Finding(
            "two-forwards",
            "error" if seen else "info",
            tuple(norm.path for norm in inside),
            {"forwards": min(ran)} if seen else {"forward_sync_buffers": True},
            f"{runs} DistributedDataParallel writes the first rank's running statistics over those "
            f"that the first forward has saved for its backward, which then fails.",
            "Join the inputs into one forward, or wrap with forward_sync_buffers=False "
            "(broadcast_buffers=False on an older torch, which has no such option).",
        )


def rows_in_training(evidence: Evidence) -> dict[str, int]:
    """Return how many rows the mini-batches of training have, by what says so."""
    loader = evidence.loader
    if not evidence.batches_given:
        rows = rows_of(evidence.example)
        return {} if rows is None else {"rows of the example": rows}
    sizes = {"rows of the smallest mini-batch": min(loader.rows, default=0)}
    if loader.length and loader.batch_size and not loader.drops_last:
        last = loader.length % loader.batch_size
        sizes |= {f"rows of the last mini-batch ({loader.length} % {loader.batch_size})": last}
    return dict(reversed(sizes.items()))


def _values_per_row(evidence: Evidence, place: Place) -> float:
    """Return how many values per channel one row of a mini-batch gives this batch norm."""
    flow, shapes = evidence.trained_flow, place.norm.shapes if place.norm else ()
    assert flow is not None
    shape = shapes[0] if shapes else flow.shapes[place.call.inputs[0]] if place.call.inputs else ()
    rows = rows_of(evidence.example)
    return math.prod(shape) / shape[1] / rows if len(shape) > 1 and shape[1] and rows else math.inf


# Frozen

_KEEP_FROZEN = (
    "Put the layer in eval mode after each model.train(), or "
    'model = bnkit.convert(model, "frozen", where=lambda path, _: path in [...]) with the paths of '
    "such layers, which then stay frozen."
)


def frozen_but_batch_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that were frozen, and that still normalise by the mini-batch."""
    trains = any(parameter.requires_grad for parameter in evidence.model.parameters())
    for norm in evidence.norms:
        how = _how_frozen(norm.module, others_train=trains)
        if how and norm.module.training:
            yield Finding(
                "frozen-but-batch-statistics",
                "warning",
                (norm.path,),
                {"how": how, **_off(norm)},
                "This batch norm looks frozen, but in training mode it normalises by the "
                "mini-batch all the same"
                + (", and its running statistics move." if "grad" in how else "."),
                _KEEP_FROZEN,
                become("frozen", norm.path),
            )
        elif norm.module.training and _runs_without_gradients(evidence, norm):
            yield _of_a_teacher(norm)
    for call in () if evidence.flow is None else evidence.flow.calls:
        if call.module is None and is_functional_batch_norm(call) and is_told_to_train(call):
            yield Finding(
                "frozen-but-batch-statistics",
                "warning",
                (call.scope,),
                {"how": "training=True in eval mode"},
                "This functional batch norm has training=True in eval mode too: it normalises by "
                "the mini-batch, so the answer for one example depends on the others.",
                "Call it with training=self.training, or use a layer.",
            )


def _runs_without_gradients(evidence: Evidence, norm: Norm) -> bool:
    """Return whether it runs in a training that sends gradients to others, but none to it."""
    step, holds = evidence.step, getattr(norm.module, "running_mean", None) is not None
    frozen = isinstance(norm.module, FrozenBatchNorm) or "frozen" in norm.kind.lower()
    return (
        step is not None
        and bool(step.gradients)
        and norm.path in step.cut_off
        and (holds and not frozen)
    )


def _of_a_teacher(norm: Norm) -> Finding:
    """Return the finding on a teacher or a momentum encoder, which does not train by gradients.

    Some are meant to normalise by the mini-batch, so it is a warning where the statistics that they
    bring along are others than those of the mini-batches, by which they would be replaced.
    """
    measured, harms = _off(norm), False
    if norm.as_trained:
        chance = by_chance(norm.module, norm.as_trained[0])
        harms = _moved_already(norm) and max(measured.values()) > max(QUARTER, 2 * chance)
    return Finding(
        "frozen-but-batch-statistics",
        "warning" if harms else "info",
        (norm.path,),
        {"how": "no gradient reaches it", **measured},
        "No gradient reaches this batch norm, as in a teacher or a momentum encoder, and it is in "
        "training mode: it normalises by the mini-batch, and each one moves its running "
        "statistics.",
        "If they are to stay, " + _KEEP_FROZEN[0].lower() + _KEEP_FROZEN[1:],
        become("frozen", norm.path),
    )


def _moved_already(norm: Norm) -> bool:
    """Return whether its running statistics are no longer those of the constructor."""
    module: Any = norm.module
    return bool((module.running_mean != 0).any() | (module.running_var != 1).any())


def _how_frozen(module: Any, *, others_train: bool) -> str:
    """Return in which way this layer was meant to be frozen, "" for none."""
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


def _off(norm: Norm) -> dict[str, float]:
    if not norm.as_trained:
        return {}
    module: Any = norm.module
    seen = norm.as_trained[0].moments
    mean, variance = module.running_mean.to(seen.mean), module.running_var.to(seen.mean)
    running = Moments(seen.count, mean, variance * seen.count)
    return {"running statistics from those of the mini-batches": distance(module, running, seen)}
