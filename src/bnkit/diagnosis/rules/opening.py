"""The rule on the gap between training and eval mode, at the first layer where it opens."""

from collections.abc import Iterator

from bnkit.dataflow import as_call
from bnkit.diagnosis.evidence import Evidence
from bnkit.diagnosis.finding import Finding, Severity
from bnkit.diagnosis.rules.mending import measuring_anew
from bnkit.diagnosis.rules.reading import Reading, readings
from bnkit.diagnosis.rules.running_statistics import ALL, HALF, SHARE, initial_share
from bnkit.gap import Gap, explain_gap


def train_eval_gap(evidence: Evidence) -> Iterator[Finding]:
    """Find a model that computes something else in eval mode than in training, dropout aside."""
    gap = _gap(evidence)
    if gap is None or not gap.parting:
        return
    first = gap.parting[0]
    behind = [r for r in readings(evidence) if r.path in {part.layer for part in gap.parting}]
    yield Finding(
        "train-eval-gap",
        _severity(evidence, gap, behind),
        (first.layer,),
        {
            "output difference": gap.output_difference,
            "own difference": first.own_difference,
            "threshold": max(gap.threshold, 2 * first.chance),
            "mean off by (std)": first.mean_shift,
            "layers that part": len(gap.parting),
            "rows": gap.rows,
        },
        f"In eval mode the output differs by {gap.output_difference:.2g} of its size from that by "
        f"the statistics of the mini-batch, and this is the first layer that parts the modes.",
        "bnkit.explain_gap(model, batch) shows all layers; model = bnkit.recalibrate(model, "
        "batches) measures their statistics anew.",
        measuring_anew(behind),
    )


def _gap(evidence: Evidence) -> Gap | None:
    """Return the gap on the example, None where there is none to measure."""
    if evidence.example is None or evidence.failure:
        return None
    call = as_call(evidence.example)
    try:
        return explain_gap(evidence.model, evidence.example, inputs=lambda _: call)
    except (ValueError, TypeError):  # no batch norm to compare, one value per channel, NaN
        return None
    except Exception:  # noqa: BLE001  a model may fail in a mode in which it was not run yet
        return None


def _severity(evidence: Evidence, gap: Gap, behind: list[Reading]) -> Severity:
    difference = gap.output_difference
    if not evidence.in_eval_mode:  # averages that training will warm up or catch up
        young = all(r.untouched or initial_share(r) > SHARE for r in behind)
        return "info" if young or difference < ALL else "warning"
    return "info" if difference < HALF else "warning" if difference < ALL else "error"
