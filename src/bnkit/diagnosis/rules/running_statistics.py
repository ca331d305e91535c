"""Rules on running statistics: never updated, not warm yet, collapsed."""

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from bnkit.diagnosis.evidence import Evidence, once
from bnkit.diagnosis.finding import Finding, Severity
from bnkit.diagnosis.rules.fixes import how_to_measure, measuring_anew
from bnkit.diagnosis.rules.places import chains_to_norms
from bnkit.diagnosis.rules.reading import Comparison, Reading, readings
from bnkit.diagnosis.rules.staleness import (
    SHARE,
    initial_share,
    is_untrained,
    off_by_more_than_chance,
)

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
            {"mini-batches tracked": reading.batches or 0}
            | ({"momentum": 0.0} if reading.momentum == 0 else {}),
            f"The running mean is 0 and the running variance 1 in every channel{reading.where}: "
            f"{why}",
            "Train, load a checkpoint with its buffers, or measure them: "
            f"{how_to_measure(evidence, reading)}.",
            measuring_anew([reading]),
        )


def _of_untouched(evidence: Evidence, reading: Reading) -> tuple[Severity, str]:
    if not reading.called:
        return "info", "the layer does not run in eval mode, so they are used nowhere."
    if evidence.in_eval_mode:
        if reading.chosen:
            return "error", "in eval mode the layer normalises nothing."
        return "warning", "selecting this domain gives a layer that normalises nothing."
    if reading.frozen and _is_fresh(evidence):
        return "info", "the layer is frozen, and no weights have been loaded into it yet."
    if reading.frozen:
        return "warning", "the layer is frozen, normalises nothing, and stays so in training."
    return "info", "training will update them; until then eval mode normalises nothing."


@once
def _is_fresh(evidence: Evidence) -> bool:
    """Return whether nothing was trained or loaded: no statistics, and no γ and β of frozen layers.

    Those of others some libraries draw at random.
    """
    found = readings(evidence)
    return all(r.untouched and (_has_first_affine(r) or not r.frozen) for r in found)


def _has_first_affine(reading: Reading) -> bool:
    weight, bias = (reading.tensors.get(name) for name in ("weight", "bias"))
    ones = weight is None or bool(((weight == 1) | (weight == 0)).all())  # 0 ends a residual branch
    return ones and (bias is None or not bool(bias.any()))


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
            f"momentum=None, or measure: {how_to_measure(evidence, reading)}.",
            measuring_anew([reading]),
        )
    yield from _uncounted(evidence)


def _is_cold(reading: Reading) -> bool:
    share, variance = initial_share(reading), reading.running_var
    if share <= SHARE or variance is None or reading.untouched or reading.frozen:
        return False
    # An average that began at 1 holds at least that share of it: less was measured otherwise.
    if bool((variance < share).any()):
        return False
    off = off_by_more_than_chance(reading)
    return reading.moments is None or (off is not None and _is_of_the_share(off, share))


def _is_of_the_share(off: Comparison, share: float) -> bool:
    """Return whether the average without its initial 0 and 1 is off by half as much, or by less."""
    rest = 1 - share
    warmed = replace(off, mean=off.mean / rest, variance=(off.variance - share) / rest)
    return warmed.change <= off.change / 2


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
                f"{how_to_measure(evidence, reading)}.",
                measuring_anew([reading]),
            )


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
        most = share >= 0.5  # half of what the layer costs is for nothing
        early = most and is_untrained(evidence, reading) and not _reads_data(evidence, reading)
        yield Finding(
            "collapsed-variance",
            "warning" if most and not early else "info",
            (reading.path,),
            {
                "channels": int(collapsed.sum()),
                "share": share,
                "smallest variance": variance.min().item(),
            },
            "These channels are given nearly the same value always: their variance is under "
            "a hundredth of eps, and their output has under a tenth of the scale γ."
            + " The weights before them have not been trained."
            * early,
            "Look at what feeds them: units that died behind a ReLU, a constant feature, weights "
            "that decayed. A constant channel can be pruned.",
        )


def _reads_data(evidence: Evidence, reading: Reading) -> bool:
    """Return whether an input of the model is what it is given: no weights have a part in it."""
    leading = chains_to_norms(evidence).get(reading.path, ())
    return any(place.value is not None and chain.start is None for _, place, chain in leading)


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
