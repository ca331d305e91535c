"""Rules on running statistics: never updated, not warm yet, stale, collapsed, noisy."""

import math
from collections.abc import Iterator

from torch import Tensor

from bnkit.diagnosis.evidence import Evidence, Seen
from bnkit.diagnosis.finding import Finding, Severity
from bnkit.diagnosis.rules.mending import converting, measuring_anew
from bnkit.diagnosis.rules.reading import Reading, chance, output_change, readings
from bnkit.layers.accumulated import AccumulatedBatchNorm
from bnkit.layers.ghost import GhostBatchNorm
from bnkit.layers.renorm import BatchRenorm

# Averages by momentum 0.1 over mini-batches of 32 move an output by √(1.5/32 · 0.1/1.9), 5% of its
# size, by chance: twice that is no sickness. It is the threshold of explain_gap.
CHANGE = 0.1
# The square of a distance in standard errors is 1 on average; over C channels its mean is over 9
# by chance in fewer than 1 of 300 layers, even for C = 1.
ERRORS = 3.0
# Of the size of an output. One that moves by all of it has nothing to do with what was learned; by
# half of it, noise is a fifth of its power (0.5² of 1 + 0.5²); by a quarter, a seventeenth.
QUARTER, HALF, ALL = 0.25, 0.5, 1.0
# What the first mini-batch starts from has no meaning; a hundredth of it is within the noise of an
# average by momentum 0.1, whose standard error is √(0.1/1.9), 23% of that of one mini-batch.
SHARE = 0.01
# The output's standard deviation is γ√(v/(v+ε)): under a tenth of γ where v < ε/99.
COLLAPSED = 99


def never_updated(evidence: Evidence) -> Iterator[Finding]:
    """Find running statistics that are still those of the constructor."""
    for reading in readings(evidence):
        if not reading.untouched:
            continue
        severity, why = _of_untouched(evidence, reading)
        yield Finding(
            "never-updated",
            severity,
            (reading.path,),
            {"mini-batches tracked": reading.batches or 0},
            f"The running mean is 0 and the running variance 1 in every channel{reading.where}: "
            f"{why}",
            "Train, load a checkpoint with its buffers, or measure them: "
            "model = bnkit.recalibrate(model, batches).",
            measuring_anew([reading]),
        )


def _of_untouched(evidence: Evidence, reading: Reading) -> tuple[Severity, str]:
    if not reading.called:
        return "info", "the layer does not run in eval mode, so they are used nowhere."
    if evidence.in_eval_mode:
        if reading.chosen:
            return "error", "in eval mode the layer normalises nothing."
        return "warning", "whoever chooses this domain gets a layer that normalises nothing."
    if reading.frozen:
        return "warning", "the layer is frozen, normalises nothing, and training will not mend it."
    return "info", "training will update them; until then eval mode normalises nothing."


def warming_up(evidence: Evidence) -> Iterator[Finding]:
    """Find averages that still hold a share of the 0 and 1 from which they started."""
    for reading in readings(evidence):
        if not _is_cold(reading):
            continue
        momentum = reading.momentum
        assert momentum is not None
        needed = math.ceil(math.log(SHARE) / math.log1p(-momentum))
        yield Finding(
            "warming-up",
            "warning" if evidence.in_eval_mode and reading.moments is not None else "info",
            (reading.path,),
            {
                "mini-batches tracked": reading.batches,
                "momentum": momentum,
                "initial share": initial_share(reading),
            },
            "After so few mini-batches a share of the running statistics is still the 0 and 1 of "
            "the constructor.",
            f"Train for at least {needed} mini-batches before eval mode, raise the momentum or use "
            f"momentum=None, or measure: model = bnkit.recalibrate(model, batches).",
            measuring_anew([reading]),
        )
    yield from _uncounted(evidence)


def initial_share(reading: Reading) -> float:
    """Return the share (1 − momentum)ⁿ of the initial values in an average of n mini-batches."""
    if reading.momentum is None or not reading.batches or not 0 < reading.momentum < 1:
        return 0.0
    return float((1 - reading.momentum) ** reading.batches)


def _is_cold(reading: Reading) -> bool:
    share, variance = initial_share(reading), reading.running_var
    if share <= SHARE or variance is None or reading.untouched or reading.frozen:
        return False
    # An average that began at 1 holds at least that share of it: less was measured otherwise.
    if bool((variance < share).any()):
        return False
    return reading.moments is None or _is_off(reading)


def _uncounted(evidence: Evidence) -> Iterator[Finding]:
    for reading in readings(evidence):
        counts_all = reading.momentum is None and reading.norm is not None and not reading.frozen
        known = reading.running_mean is not None and not reading.untouched
        if counts_all and known and reading.batches == 0 and not evidence.in_eval_mode:
            yield Finding(
                "warming-up",
                "warning",
                (reading.path,),
                {"mini-batches tracked": 0, "share of the next mini-batch": 1.0},
                "The running statistics are of some mini-batches, but none is counted, and with "
                "momentum=None the next one takes the place of all of them.",
                "Load num_batches_tracked with the statistics, or measure: "
                "model = bnkit.recalibrate(model, batches).",
                measuring_anew([reading]),
            )


def stale_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find running statistics that are not those of the given mini-batches."""
    for reading in readings(evidence):
        if not _is_off(reading):
            continue
        moments = reading.moments
        assert moments is not None
        change = output_change(reading, moments.mean, moments.variance)
        frozen = reading.frozen
        yield Finding(
            "stale-statistics",
            _severity_of_staleness(evidence, reading, change),
            (reading.path,),
            {
                "output change": change,
                "threshold": _tolerance(reading),
                "standard errors": distance_in_errors(reading),
                "mean off by (std)": _shift(reading, moments.mean),
                "values": moments.count,
            },
            f"The running statistics{reading.where} are not those of these mini-batches, and the "
            f"layer's output moves by such a share of its size."
            + (" The layer is frozen, perhaps on purpose." if frozen else ""),
            "Measure them anew: model = bnkit.recalibrate(model, batches).",
            None if frozen and not reading.untouched else measuring_anew([reading]),
        )


def _severity_of_staleness(evidence: Evidence, reading: Reading, change: float) -> Severity:
    young = reading.untouched or initial_share(reading) > SHARE
    if reading.frozen and not reading.untouched:
        return "info"
    if not evidence.in_eval_mode:  # averages lag behind weights that train, and will catch up
        return "info" if young or change < HALF else "warning"
    if change >= ALL or reading.untouched:
        return "error"
    return "warning" if change >= QUARTER else "info"


def _is_off(reading: Reading) -> bool:
    """Return whether the statistics are off by more than chance, and by enough to matter."""
    mean, variance, moments = reading.running_mean, reading.running_var, reading.moments
    if mean is None or variance is None or moments is None:
        return False
    if len(mean) != len(moments.mean) or not all(t.isfinite().all() for t in (mean, variance)):
        return False
    if not bool((variance + reading.eps > 0).all()):
        return False
    change = output_change(reading, moments.mean, moments.variance)
    return change > _tolerance(reading) and distance_in_errors(reading) > ERRORS


def _tolerance(reading: Reading) -> float:
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


def _shift(reading: Reading, mean: Tensor) -> float:
    running_mean, running_var = reading.running_mean, reading.running_var
    assert running_mean is not None
    assert running_var is not None
    return ((mean - running_mean).abs() / (running_var + reading.eps).sqrt()).max().item()


def collapsed_variance(evidence: Evidence) -> Iterator[Finding]:
    """Find channels whose input hardly varies, so that they carry their bias and little else."""
    for reading in readings(evidence):
        variance = measured_variance(reading)
        if variance is None:
            continue
        collapsed = is_collapsed(reading, variance)
        share = collapsed.double().mean().item()
        if not share:
            continue
        yield Finding(
            "collapsed-variance",
            "warning" if share >= 0.5 else "info",  # half of what the layer costs is for nothing
            (reading.path,),
            {
                "channels": int(collapsed.sum()),
                "share": share,
                "smallest variance": variance.min().item(),
            },
            "These channels are given nearly the same value always: their variance is under "
            "a hundredth of eps, and their output has under a tenth of the scale γ.",
            "Look at what feeds them: units that died behind a ReLU, a constant feature, weights "
            "that decayed. A constant channel can be pruned.",
        )


def measured_variance(reading: Reading) -> Tensor | None:
    """Return the variance of the inputs: as seen, else the running one if it has been updated."""
    if reading.moments is not None:
        return reading.moments.variance
    variance = reading.running_var
    if variance is None or reading.untouched or not bool(variance.isfinite().all()):
        return None
    return variance


def is_collapsed(reading: Reading, variance: Tensor) -> Tensor:
    """Return which channels have collapsed: far below eps, and far below the layer's largest.

    Where all are small alike, it is eps that is too large for them.
    """
    largest = variance.max() if bool((variance > 0).any()) else variance.new_ones(())
    return (variance * COLLAPSED < reading.eps) & (variance < largest * 1e-4)


def noisy_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find layers that are trained by the statistics of too few independent values."""
    if evidence.in_eval_mode:
        return
    for reading in readings(evidence):
        values = effective_values(reading)
        noise = noise_of(values)
        if values is None or reading.frozen or noise <= QUARTER:
            continue
        yield Finding(
            "noisy-statistics",
            "warning" if noise > HALF else "info",
            (reading.path,),
            {"effective values per channel": values, "output noise": noise},
            "The statistics of a mini-batch are worth those of few independent values per channel: "
            "chance moves the output by such a share of its size.",
            "Use larger mini-batches, synchronise the ranks, or correct by running statistics: "
            'model = bnkit.convert(model, "renorm").',
            converting(reading, "renorm") if noise > HALF else None,
        )


def noise_of(values: float | None) -> float:
    """Return √(1.5/n), how far the statistics of n values move an output; 0 for None.

    >>> noise_of(6.0)
    0.5
    """
    return 0.0 if values is None else math.sqrt(1.5 / values)


def effective_values(reading: Reading) -> float | None:
    """Return how many independent values per channel a mini-batch is worth to this layer.

    Values of one row are alike: B rows whose means have the variance s² give the mean of a
    mini-batch the variance s²/B, which v·B/s² independent values of variance v would give. It is
    the median over the channels, None where it was not seen or statistics come from elsewhere.
    """
    if isinstance(reading.module, BatchRenorm) or not reading.seen:
        return None
    found = [_effective(reading, seen) for seen in reading.seen]
    return min((values for values in found if values is not None), default=None)


def _effective(reading: Reading, seen: Seen) -> float | None:
    variance, of_rows = seen.moments.variance, seen.of_rows.variance
    varying = (variance > 0) & variance.isfinite() & of_rows.isfinite()
    if not bool(varying.any()):
        return None
    rows = _rows_of_statistics(reading, seen.of_rows.count / seen.batches)
    most = rows * seen.moments.count / seen.of_rows.count
    ratio = (variance[varying] / of_rows[varying].clamp_min(1e-300)).median().item()
    return min(rows * ratio, most)


def _rows_of_statistics(reading: Reading, rows: float) -> float:
    """Return the rows whose statistics are taken together, of so many in a mini-batch."""
    module = reading.module
    if isinstance(module, GhostBatchNorm):
        return min(rows, module.virtual_batch_size)
    return rows * module.micro_batches if isinstance(module, AccumulatedBatchNorm) else rows
