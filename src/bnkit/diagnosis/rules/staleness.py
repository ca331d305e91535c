"""Rules on stale running statistics, and on the gap between the modes that they open."""

import math
from collections.abc import Iterator

from torch import Tensor

from bnkit.dataflow import as_call
from bnkit.diagnosis.evidence import Evidence, Norm, once
from bnkit.diagnosis.finding import Finding, Severity
from bnkit.diagnosis.fix import Fix, in_turn
from bnkit.diagnosis.rules.distances import change_of_outputs
from bnkit.diagnosis.rules.fixes import measuring_anew, measuring_trained_anew
from bnkit.diagnosis.rules.places import normalises_by_batch
from bnkit.diagnosis.rules.reading import (
    ALL,
    HALF,
    QUARTER,
    Reading,
    chance,
    output_change,
    readings,
)
from bnkit.norms import why_incomparable
from bnkit.surgery.verification import run_itself
from bnkit.train_eval_gap import Gap, explain_gap

# Averages by momentum 0.1 over mini-batches of 32 move an output by √(1.5/32 · 0.1/1.9), 5% of its
# size, by chance: up to twice that is normal. It is the threshold of explain_gap.
CHANGE = 0.1
# The square of a distance in standard errors is 1 on average; over C channels its mean is over 9
# by chance in fewer than 1 of 300 layers, even for C = 1.
ERRORS = 3.0
# What the first mini-batch starts from has no meaning; a hundredth of it is within the noise of an
# average by momentum 0.1, whose standard error is √(0.1/1.9), 23% of that of one mini-batch.
SHARE = 0.01


def stale_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find running statistics that are not those of the given mini-batches.

    How bad it is, the smaller one of two changes says: of the layer's output and of the model's.
    """
    off = [reading for reading in readings(evidence) if is_off(reading)]
    of_model = change_of_model(evidence)
    for reading in off:
        moments = reading.moments
        assert moments is not None
        change = output_change(reading, moments.mean, moments.variance)
        frozen = reading.frozen
        yield Finding(
            "stale-statistics",
            _severity_of_staleness(evidence, reading, min(change, of_model)),
            (reading.path,),
            {
                "output change": change,
                "of the model": of_model,
                "threshold": tolerance(reading),
                "standard errors": distance_in_errors(reading),
                "mean off by (std)": shift(reading, moments.mean),
                "values": moments.count,
            },
            f"The running statistics{reading.where} are not those of these mini-batches, and the "
            f"layer's output moves by such a share of its size."
            + (" The layer is frozen, perhaps on purpose." if frozen else ""),
            "Measure them anew: model = bnkit.recalibrate(model, batches).",
            _fix(evidence, reading),
        )


def _fix(evidence: Evidence, reading: Reading) -> Fix | None:
    """Return the fix of this layer and of all that are trained; None where it is frozen.

    What a layer is given depends on the statistics of those before it, of which many that are a
    little off make one that is far off.
    """
    if reading.frozen and not reading.untouched:
        return None
    own = measuring_anew([reading]) if reading.untouched else None
    return in_turn(own, measuring_trained_anew(evidence))


@once
def diverging(evidence: Evidence) -> list[Reading]:
    """Return the readings by which eval mode diverges from training, in the order of the run."""
    off = [
        reading
        for reading in readings(evidence)
        if reading.norm and is_off(reading) and normalises_by_batch(evidence, reading.norm)
    ]
    last = len(evidence.flow.calls) if evidence.flow else 0
    return sorted(off, key=lambda r: r.norm.calls[0].index if r.norm and r.norm.calls else last)


@once
def change_of_model(evidence: Evidence) -> float:
    """Return how far the model's output in eval mode is from that with all of `diverging` fixed.

    It is a root mean square over that of the fixed one's output; infinite where it cannot be run.
    """
    fix, outcome = measuring_anew(diverging(evidence)), evidence.outcome
    if fix is None or outcome is None:
        return math.inf
    try:
        fixed = run_itself(fix(evidence.model), evidence.example)
    except Exception as error:  # noqa: BLE001  a model may fail on statistics it did not meet before
        evidence.notes.append(
            f"the model with the statistics of the mini-batches fails on the example: "
            f"{type(error).__name__}: {error}"
        )
        return math.inf
    return change_of_outputs(fixed.outputs, outcome.outputs)


def _severity_of_staleness(evidence: Evidence, reading: Reading, change: float) -> Severity:
    young = reading.untouched or initial_share(reading) > SHARE
    if reading.frozen and not reading.untouched:
        return "info"
    if not evidence.in_eval_mode:  # averages lag behind weights that train, and will catch up
        return "info" if young or change < ALL else "warning"
    if change >= ALL or reading.untouched:
        return "error"
    return "warning" if change >= QUARTER else "info"


def is_off(reading: Reading) -> bool:
    """Return whether the statistics are off by more than chance, and by enough to matter."""
    mean, variance, moments = reading.running_mean, reading.running_var, reading.moments
    if mean is None or variance is None or moments is None:
        return False
    if len(mean) != len(moments.mean) or not all(t.isfinite().all() for t in (mean, variance)):
        return False
    if not bool((variance + reading.eps > 0).all()):
        return False
    change = output_change(reading, moments.mean, moments.variance)
    return change > tolerance(reading) and distance_in_errors(reading) > ERRORS


def tolerance(reading: Reading) -> float:
    """Return how far an output may move: the threshold, twice what chance makes of so few rows.

    And what chance makes of one mini-batch, which is what training itself does to the output.
    """
    moments, of_rows = reading.moments, reading.of_rows
    assert moments is not None
    assert of_rows is not None
    batches = sum(seen.batches for seen in reading.seen)
    of_all = chance(reading, moments.variance, of_rows.variance / of_rows.count)
    of_one = chance(reading, moments.variance, of_rows.variance / of_rows.count * batches)
    return max(CHANGE, 2 * of_all, of_one)


def distance_in_errors(reading: Reading) -> float:
    """Return the root mean square over the channels of |μ − m| in its standard errors.

    The error is that of the given rows, which are the units of sampling, and of the running mean:
    by momentum a over mini-batches of B rows it has a/(2 − a)/B of the variance of a row.
    """
    mean, variance = reading.running_mean, reading.running_var
    moments, of_rows = reading.moments, reading.of_rows
    assert mean is not None
    assert variance is not None
    assert moments is not None
    assert of_rows is not None
    share = _share_of_variance(reading, of_rows.count)
    given = moments.unbiased_variance
    of_means = _mean_ratio((moments.mean - mean).square(), of_rows.variance * share)
    of_variances = _mean_ratio((variance - given).square(), given.square() * 2 * share)
    return math.sqrt(max(of_means, of_variances))


def _share_of_variance(reading: Reading, rows: int) -> float:
    """Return the squared standard error of a difference of means, over the variance of a row."""
    per_batch = rows / sum(seen.batches for seen in reading.seen)
    momentum = reading.momentum or 0.0
    return 1 / rows + momentum / (2 - momentum) / per_batch


def _mean_ratio(squares: Tensor, squared_errors: Tensor) -> float:
    """Return the mean of squares over squared errors, of the channels that vary."""
    varying = squared_errors > 0
    if not bool(varying.any()):
        return math.inf if bool(squares.any()) else 0.0
    return (squares[varying] / squared_errors[varying]).mean().item()


def shift(reading: Reading, mean: Tensor) -> float:
    """Return the largest |mean − running mean| of a channel, in running standard deviations."""
    running_mean, running_var = reading.running_mean, reading.running_var
    assert running_mean is not None
    assert running_var is not None
    return ((mean - running_mean).abs() / (running_var + reading.eps).sqrt()).max().item()


def initial_share(reading: Reading) -> float:
    """Return the share (1 − momentum)ⁿ of the initial values in an average of n mini-batches."""
    if reading.momentum is None or not reading.batches or not 0 < reading.momentum < 1:
        return 0.0
    return float((1 - reading.momentum) ** reading.batches)


# The gap


_LOSSES = ("loss by batch statistics", "loss in eval mode")


def train_eval_gap(evidence: Evidence) -> Iterator[Finding]:
    """Find a model that computes something else in eval mode than in training, dropout aside.

    What was seen of all mini-batches tells it, or `explain_gap` on the example where that is not
    known.
    """
    behind = diverging(evidence)
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
        "layers that diverge": len(behind),
    }
    return _finding(evidence, first.path, measured, behind)


def _on_the_example(evidence: Evidence, gap: Gap) -> Finding:
    first, paths = gap.diverging[0], {each.layer for each in gap.diverging}
    measured = {
        "output difference": gap.output_difference,
        "own difference": first.own_difference,
        "threshold": max(gap.threshold, 2 * first.chance),
        "mean off by (std)": first.mean_shift,
        "layers that diverge": len(gap.diverging),
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
        "and this is the first layer at which the modes diverge.",
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
