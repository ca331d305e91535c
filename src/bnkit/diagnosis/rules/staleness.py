"""Rules on stale running statistics, and on the gap between the modes that they open."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from bnkit.dataflow import as_call, duplicate
from bnkit.diagnosis.evidence import Evidence, once
from bnkit.diagnosis.finding import Finding, Severity
from bnkit.diagnosis.fix import Fix, in_turn
from bnkit.diagnosis.rules.distances import change_of_outputs
from bnkit.diagnosis.rules.fixes import (
    RECALIBRATE,
    how_to_measure,
    measuring_anew,
    measuring_trained_anew,
)
from bnkit.diagnosis.rules.places import normalises_by_batch
from bnkit.diagnosis.rules.reading import (
    ALL,
    HALF,
    QUARTER,
    Comparison,
    Reading,
    readings,
)
from bnkit.diagnosis.runs import rows_of
from bnkit.norms import is_to_be_tried, why_incomparable
from bnkit.observation import follow_mode, normalising_by_batch_statistics
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
    of_model = change_of_model(evidence)
    for reading in readings(evidence):
        off = off_by_more_than_chance(reading)
        if off is None:
            continue
        change = off.change
        yield Finding(
            "stale-statistics",
            _severity_of_staleness(evidence, reading, min(change, of_model)),
            (reading.path,),
            {
                "output change": change,
                "of the model": of_model,
                "threshold": tolerance(off),
                "standard errors": distance_in_errors(off),
                "mean off by (std)": off.shift,
                "values": off.given.count,
            },
            f"The running statistics{reading.where} are not those of these mini-batches, and the "
            f"layer's output moves by such a share of its size."
            + (" The layer is frozen, perhaps on purpose." if reading.frozen else ""),
            f"Measure them anew: {how_to_measure(evidence, reading)}.",
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
def diverging(evidence: Evidence) -> list[Comparison]:
    """Return the statistics by which eval mode diverges from training, in the order of the run."""
    found = [(reading.norm, off_by_more_than_chance(reading)) for reading in readings(evidence)]
    off = [(n, each) for n, each in found if n and each and normalises_by_batch(evidence, n)]
    last = len(evidence.flow.calls) if evidence.flow else 0
    off.sort(key=lambda found: found[0].calls[0].index if found[0].calls else last)
    return [each for _, each in off]


@once
def change_of_model(evidence: Evidence) -> float:
    """Return how far the model's output in eval mode is from that with all of `diverging` fixed.

    It is a root mean square over that of the fixed one's output; infinite where it cannot be run.
    """
    outcome, fixed = evidence.outcome, _outputs_as_measured(evidence)
    if outcome is None or fixed is None or not diverging(evidence):
        return math.inf
    return change_of_outputs(fixed, outcome.outputs)


def change_by(evidence: Evidence, others: Mapping[Reading, tuple[Tensor, Tensor]]) -> float | None:
    """Return how far the model's output moves by `others`, mean and variance of some batch norms.

    That is on the example in eval mode, from the output with all of `diverging` fixed, over the
    size of that; None where it cannot be run.
    """
    before = _outputs_as_measured(evidence)
    after = None if before is None else _outputs_by(evidence, _as_measured(evidence) | dict(others))
    return None if before is None or after is None else change_of_outputs(before, after)


def _as_measured(evidence: Evidence) -> dict[Reading, tuple[Tensor, Tensor]]:
    return {
        off.reading: (off.given.mean, off.given.unbiased_variance) for off in diverging(evidence)
    }


@once
def _outputs_as_measured(evidence: Evidence) -> Sequence[Tensor] | None:
    statistics, outcome = _as_measured(evidence), evidence.outcome
    if outcome is None or not statistics:
        return None if outcome is None else outcome.outputs
    return _outputs_by(evidence, statistics)


def _outputs_by(
    evidence: Evidence, statistics: Mapping[Reading, tuple[Tensor, Tensor]]
) -> Sequence[Tensor] | None:
    """Return what the model makes of the example by these statistics, None where it fails.

    They are written into the model itself while it runs.
    """
    held = dict(evidence.model.named_buffers())
    values = {
        reading.names[name]: value
        for reading, moments in statistics.items()
        for name, value in zip(("running_mean", "running_var"), moments, strict=True)
        if reading.names.get(name) in held
    }
    own = {name: held[name].clone() for name in values}
    try:
        for name, value in values.items():
            held[name].copy_(value)
        return run_itself(evidence.model, evidence.example).outputs
    except Exception as error:  # noqa: BLE001  a model may fail on statistics it did not meet before
        note = f"the model with other statistics fails on the example: {_named(error)}"
        if note not in evidence.notes:
            evidence.notes.append(note)
        return None
    finally:
        for name, value in own.items():
            held[name].copy_(value)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _severity_of_staleness(evidence: Evidence, reading: Reading, change: float) -> Severity:
    young = is_young(reading)
    if reading.frozen and not reading.untouched:
        return "info"
    if not evidence.in_eval_mode:  # averages lag behind weights that train, and will catch up
        return "info" if young or change < ALL else "warning"
    if change >= ALL or reading.untouched:
        return "error"
    return "warning" if change >= QUARTER else "info"


def off_by_more_than_chance(reading: Reading) -> Comparison | None:
    """Return the comparison of statistics that are off by more than chance, and so that it matters.

    None for others, and where they cannot be computed with.
    """
    compared = reading.compared
    if compared is None or not (compared.mean.isfinite() & compared.variance.isfinite()).all():
        return None
    if not bool((compared.variance + reading.eps > 0).all()):
        return None
    matters = compared.change > tolerance(compared)
    return compared if matters and distance_in_errors(compared) > ERRORS else None


def tolerance(compared: Comparison) -> float:
    """Return how far an output may move: the threshold, twice what chance makes of so few rows.

    And what chance makes of one mini-batch, which is what training itself does to the output.
    """
    squared_error = compared.of_rows.variance / compared.of_rows.count
    of_one = compared.chance(squared_error * compared.batches)
    return max(CHANGE, 2 * compared.chance(squared_error), of_one)


def distance_in_errors(compared: Comparison) -> float:
    """Return the root mean square over the channels of |μ − m| in its standard errors.

    The error is that of the given rows, which are the units of sampling, and of the running mean:
    by momentum a over mini-batches of B rows it has a/(2 − a)/B of the variance of a row.
    """
    rows, momentum = compared.of_rows.count, compared.reading.momentum or 0.0
    per_batch = rows / compared.batches
    share = 1 / rows + momentum / (2 - momentum) / per_batch  # of the variance of a row
    given = compared.given.unbiased_variance
    of_means = (compared.given.mean - compared.mean).square()
    of_variances = (compared.variance - given).square()
    ratios = (
        _mean_ratio(of_means, compared.of_rows.variance * share),
        _mean_ratio(of_variances, given.square() * 2 * share),
    )
    return math.sqrt(max(ratios))


def _mean_ratio(squares: Tensor, squared_errors: Tensor) -> float:
    """Return the mean of squares over squared errors, of the channels that vary."""
    varying = squared_errors > 0
    if not bool(varying.any()):
        return math.inf if bool(squares.any()) else 0.0
    return (squares[varying] / squared_errors[varying]).mean().item()


def is_young(reading: Reading) -> bool:
    """Return whether the statistics hold much of what they started from: training has not begun."""
    return reading.untouched or initial_share(reading) > SHARE


def is_untrained(evidence: Evidence, reading: Reading) -> bool:
    """Return whether the weights around it are still to be trained: what comes of them will change.

    In eval mode a model is taken as trained once its statistics have been updated.
    """
    return reading.untouched if evidence.in_eval_mode else is_young(reading)


def initial_share(reading: Reading) -> float:
    """Return the share (1 − momentum)ⁿ of the initial values in an average of n mini-batches."""
    if reading.momentum is None or not reading.batches or not 0 < reading.momentum < 1:
        return 0.0
    return float((1 - reading.momentum) ** reading.batches)


# The gap


_FIGURES = (
    "output difference",
    "own difference",
    "threshold",
    "mean off by (std)",
    "layers that diverge",
)
_LOSSES = ("loss by batch statistics", "loss in eval mode")


def train_eval_gap(evidence: Evidence) -> Iterator[Finding]:
    """Find a model that computes something else in eval mode than in training, dropout aside.

    What was seen of all mini-batches tells it, or `explain_gap` on the example where that is not
    known.
    """
    behind = diverging(evidence)
    difference = change_of_model(evidence)
    if behind and math.isfinite(difference):
        first = behind[0]
        figures = difference, first.change, tolerance(first), first.shift, len(behind)
        yield _gap_at(evidence, first.reading.path, figures, [off.reading for off in behind])
        return
    gap = _gap(evidence)
    if gap is not None and gap.diverging:
        yield _gap_on_the_example(evidence, gap)
    elif not behind:
        yield from _gap_of_unread(evidence)


def unread(evidence: Evidence) -> list[Reading]:
    """Return the batch norms whose statistics cannot be compared with what they are given.

    They are functions of torch, and classes of which it is unknown what their buffers mean.
    """
    return [
        reading
        for reading in readings(evidence)
        if not reading.frozen
        and (
            "running_mean" in reading.names
            if reading.norm is None
            else is_to_be_tried(reading.norm.module) and reading.running_mean is None
        )
    ]


def _gap_of_unread(evidence: Evidence) -> Iterator[Finding]:
    """Yield the finding where the model alone tells that eval mode diverges from training.

    It is run on the example with all batch norms taking the statistics of the mini-batch, the
    unread ones by their own mode of training.
    """
    found, outcome, rows = unread(evidence), evidence.outcome, rows_of(evidence.example)
    if not found or outcome is None or not rows:
        return
    paths = [reading.path for reading in found]

    @contextmanager
    def as_trained(model: nn.Module) -> Iterator[None]:
        with normalising_by_batch_statistics(model):
            for path in paths:
                follow_mode(model.get_submodule(path), nn.Identity())
            yield

    try:
        by_batch = run_itself(duplicate(evidence.model), evidence.example, mode=as_trained)
    except Exception as error:  # noqa: BLE001  whatever the model raises by other statistics
        evidence.notes.append(f"the gap on the example: {_named(error)}")
        return
    difference = change_of_outputs(by_batch.outputs, outcome.outputs)
    threshold = max(CHANGE, 2 * math.sqrt(1.5 / rows))
    if difference > threshold:
        yield Finding(
            "train-eval-gap",
            _severity(evidence, difference, found),
            tuple(paths),
            {"output difference": difference, "threshold": threshold},
            "In eval mode the model's output differs from that by the statistics of the example, "
            "in these batch norms, whose own statistics were not read.",
            f"Measure their statistics anew: {how_to_measure(evidence, found[0])}.",
        )


def _gap_on_the_example(evidence: Evidence, gap: Gap) -> Finding:
    first, paths = gap.diverging[0], {each.layer for each in gap.diverging}
    threshold = max(gap.threshold, 2 * first.chance)
    differences = gap.output_difference, first.own_difference
    figures = *differences, threshold, first.mean_shift, len(gap.diverging)
    behind = [reading for reading in readings(evidence) if reading.path in paths]
    return _gap_at(evidence, first.layer, figures, behind)


def _gap_at(
    evidence: Evidence, layer: str, figures: Sequence[float], behind: list[Reading]
) -> Finding:
    losses = dict(zip(_LOSSES, evidence.losses or (), strict=False))
    return Finding(
        "train-eval-gap",
        _severity(evidence, figures[0], behind),
        (layer,),
        {**dict(zip(_FIGURES, figures, strict=True)), **losses},
        "In eval mode the model's output differs from that by the statistics of the mini-batches, "
        "and this is the first layer at which the modes diverge.",
        "bnkit.explain_gap(model, batch) shows all layers. Measure the statistics anew: "
        f"{how_to_measure(evidence, behind[0]) if behind else RECALIBRATE}.",
        in_turn(measuring_anew(behind), measuring_trained_anew(evidence)),
    )


def _gap(evidence: Evidence) -> Gap | None:
    """Return the gap on the example, None where there is none to measure."""
    ran = [norm for norm in evidence.norms if norm.calls]
    incomparable = (why_incomparable(norm.module, *norm.shapes[:1]) for norm in ran)
    if evidence.example is None or evidence.failure or all(incomparable):
        return None
    call = as_call(evidence.example)
    try:
        return explain_gap(evidence.model, evidence.example, inputs=lambda _: call)
    except Exception as error:  # noqa: BLE001  whatever the model raises by other statistics
        evidence.notes.append(f"the gap on the example: {type(error).__name__}: {error}")
        return None


def _severity(evidence: Evidence, difference: float, behind: list[Reading]) -> Severity:
    if not evidence.in_eval_mode:  # averages that training will warm up or catch up
        young = all(map(is_young, behind))
        return "info" if young or difference < ALL else "warning"
    return "info" if difference < HALF else "warning" if difference < ALL else "error"
