"""The rule on the gap between training and eval mode, at the first layer where it opens."""

import math
from collections.abc import Iterator

from bnkit.dataflow import as_call
from bnkit.diagnosis.evidence import Evidence, Norm
from bnkit.diagnosis.finding import Finding, Severity
from bnkit.diagnosis.fix import in_turn
from bnkit.diagnosis.rules.fixes import measuring_anew, measuring_trained_anew
from bnkit.diagnosis.rules.reading import ALL, HALF, Reading, output_change, readings
from bnkit.diagnosis.rules.staleness import (
    SHARE,
    change_of_model,
    initial_share,
    parting,
    shift,
    tolerance,
)
from bnkit.norms import why_incomparable
from bnkit.train_eval_gap import Gap, explain_gap

_LOSSES = ("loss by batch statistics", "loss in eval mode")


def train_eval_gap(evidence: Evidence) -> Iterator[Finding]:
    """Find a model that computes something else in eval mode than in training, dropout aside.

    What was seen of all mini-batches tells it, or `explain_gap` on the example where that is not
    known.
    """
    behind = parting(evidence)
    if behind and math.isfinite(change_of_model(evidence)):
        yield _over_all_batches(evidence, behind)
        return
    gap = _gap(evidence)
    if gap is not None and gap.diverging:
        yield _on_the_example(evidence, gap)


def _over_all_batches(evidence: Evidence, behind: list[Reading]) -> Finding:
    first = behind[0]
    moments = first.moments
    assert moments is not None
    measured = {
        "output difference": change_of_model(evidence),
        "own difference": output_change(first, moments.mean, moments.variance),
        "threshold": tolerance(first),
        "mean off by (std)": shift(first, moments.mean),
        "layers that part": len(behind),
    }
    return _finding(evidence, first.path, measured, behind)


def _on_the_example(evidence: Evidence, gap: Gap) -> Finding:
    first, paths = gap.diverging[0], {part.layer for part in gap.diverging}
    measured = {
        "output difference": gap.output_difference,
        "own difference": first.own_difference,
        "threshold": max(gap.threshold, 2 * first.chance),
        "mean off by (std)": first.mean_shift,
        "layers that part": len(gap.diverging),
    }
    behind = [reading for reading in readings(evidence) if reading.path in paths]
    return _finding(evidence, first.layer, measured, behind)


def _finding(
    evidence: Evidence, layer: str, measured: dict[str, float], behind: list[Reading]
) -> Finding:
    losses = dict(zip(_LOSSES, evidence.losses or (), strict=False))
    return Finding(
        "train-eval-gap",
        _severity(evidence, measured["output difference"], behind),
        (layer,),
        {**measured, **losses},
        "In eval mode the model's output differs from that by the statistics of the mini-batches, "
        "and this is the first layer that parts the modes.",
        "bnkit.explain_gap(model, batch) shows all layers; model = bnkit.recalibrate(model, "
        "batches) measures their statistics anew.",
        in_turn(measuring_anew(behind), measuring_trained_anew(evidence)),
    )


def _gap(evidence: Evidence) -> Gap | None:
    """Return the gap on the example, None where there is none to measure."""
    if evidence.example is None or evidence.failure or not any(map(_is_compared, evidence.norms)):
        return None
    call = as_call(evidence.example)
    try:
        return explain_gap(evidence.model, evidence.example, inputs=lambda _: call)
    except Exception as error:  # noqa: BLE001  whatever the model raises by other statistics
        evidence.notes.append(f"the gap on the example: {type(error).__name__}: {error}")
        return None


def _is_compared(norm: Norm) -> bool:
    return bool(norm.calls) and why_incomparable(norm.module) is None


def _severity(evidence: Evidence, difference: float, behind: list[Reading]) -> Severity:
    if not evidence.in_eval_mode:  # averages that training will warm up or catch up
        young = all(r.untouched or initial_share(r) > SHARE for r in behind)
        return "info" if young or difference < ALL else "warning"
    return "info" if difference < HALF else "warning" if difference < ALL else "error"
