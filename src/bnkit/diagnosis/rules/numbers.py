"""Rules on numbers: what is not finite, half precision, momentum and eps."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from bnkit.diagnosis.evidence import Evidence
from bnkit.diagnosis.finding import Finding, Severity
from bnkit.diagnosis.fix import Fix, by_edit, in_turn
from bnkit.diagnosis.rules.fixes import edit, how_to_measure, in_float32, measuring_anew
from bnkit.diagnosis.rules.reading import (
    HALF_PRECISION,
    STATISTICS,
    Reading,
    is_finite,
    readings,
)
from bnkit.diagnosis.rules.running_statistics import is_collapsed, measured_variance
from bnkit.diagnosis.rules.staleness import is_young
from bnkit.internals import AnyBatchNorm
from bnkit.norms import is_to_be_tried

# An average of which the last mini-batch or two make nine tenths is hardly intended; Keras's 0.99
# and 0.9 are shares of what is kept.
_OTHER_CONVENTION = 0.9
_DEFAULT_MOMENTUM, _DEFAULT_EPS = 0.1, 1e-5
_EPS_OF_KERAS = 1e-3
# No framework's eps is larger; momentum stands next to it among the arguments.
_EPS_OF_NO_FRAMEWORK = 0.1


def non_finite(evidence: Evidence) -> Iterator[Finding]:
    """Find NaN, infinities and negative variances in state and in what layers are given."""
    for reading in readings(evidence):
        bad = {name: count for name, count in _bad_values(reading).items() if count}
        if bad:
            only_statistics = all(name in STATISTICS for name in bad)
            yield Finding(
                "non-finite",
                "error",
                (reading.path,),
                bad,
                f"{', '.join(bad)}{reading.where} cannot be computed with: the channels are NaN or "
                f"infinite in eval mode.",
                f"Measure the statistics anew, {how_to_measure(evidence, reading)}, or go back to "
                f"a checkpoint; bnkit's layers keep such mini-batches out.",
                measuring_anew([reading]) if only_statistics else None,
            )
    yield from _kept_out(evidence)
    yield from _given(evidence)


def _bad_values(reading: Reading) -> Mapping[str, int]:
    floating = {n: t for n, t in reading.tensors.items() if t.is_floating_point()}
    bad = {name: int((~value.isfinite()).sum()) for name, value in floating.items()}
    variance = reading.running_var
    if variance is not None:
        bad["running_var"] += int((variance + reading.eps <= 0).sum())
    return bad


def _kept_out(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        count = int(getattr(norm.module, "non_finite_batches", 0))
        if count:
            yield Finding(
                "non-finite",
                "warning",
                (norm.path,),
                {"mini-batches kept out": count},
                "The layer received mini-batches with NaN or infinite values; their statistics "
                "were kept out of the running ones, but not their gradients.",
                "Look for them in the data, lower the learning rate, or scale the loss under AMP.",
            )


def _given(evidence: Evidence) -> Iterator[Finding]:
    sick = [
        norm for norm in evidence.norms if any(not is_finite(s.moments) for s in norm.as_trained)
    ]
    if not sick:
        return
    order = [*evidence.norms]
    first = min(sick, key=lambda n: n.calls[0].index if n.calls else order.index(n))
    yield Finding(
        "non-finite",
        "error",
        (first.path,),
        {"layers that are given such values": len(sick)},
        "The layer is given NaN, infinite values, or values too large for their squares; it is the "
        "first one.",
        "Look at the data, and at the weights between this layer and the one before.",
    )


def half_precision_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find running statistics that are kept in half precision."""
    for reading in readings(evidence):
        dtypes = (reading.tensors[n].dtype for n in STATISTICS[:2] if n in reading.tensors)
        dtype = next((dtype for dtype in dtypes if dtype in HALF_PRECISION), None)
        if dtype is None:
            continue
        steps = torch.finfo(dtype).eps
        severity: Severity = "info" if evidence.in_eval_mode else "warning"
        yield Finding(
            "half-precision-statistics",
            severity,
            (reading.path,),
            {"dtype": str(dtype), "smallest relative step": steps},
            f"An average in {dtype} takes in no change under {steps:.1g} of its value, and one by "
            f"momentum 0.1 stands still {5 * steps:.1g} away from the truth"
            + (f"; {dtype} ends at 65504." if dtype is torch.float16 else "."),
            "Keep batch norm in float32, and train under torch.autocast: layer.float().",
            in_float32(reading),
        )


def momentum_convention(evidence: Evidence) -> Iterator[Finding]:
    """Find momentum that reads as another framework's: the share that is kept."""
    for reading in readings(evidence):
        momentum = reading.momentum
        if momentum is None or momentum < _OTHER_CONVENTION:
            continue
        if reading.frozen or reading.running_mean is None:
            continue
        in_torch = _in_torch(momentum)
        yield Finding(
            "momentum-convention",
            "warning",
            (reading.path,),
            {"momentum": momentum},
            f"Torch's momentum is the share of the new mini-batch: by {momentum:g} the running "
            f"statistics are nearly those of the last one. In Keras and others it is the share "
            f"that is kept.",
            f"Set momentum={in_torch:g}"
            + (" (1 − momentum)" if momentum < 1 else ", torch's default")
            + ", then recalibrate.",
            _with_momentum_of_torch(reading),
        )


def _with_momentum_of_torch(reading: Reading) -> Fix | None:
    """Return the fix of the next averages, and of those that hold the last mini-batch only."""
    assert reading.momentum is not None
    if reading.module is None or is_to_be_tried(reading.module):
        return None  # what the momentum of another class means is its own affair
    momentum = _in_torch(reading.momentum)
    action, options = f"momentum = {momentum:g}", {"momentum": momentum}
    set_it = by_edit(edit(reading.path, "set_numbers", action, options), needs=[reading.path])
    return in_turn(set_it, None if reading.untouched else measuring_anew([reading]))


def _in_torch(momentum: float) -> float:
    """Return 1 − momentum; torch's default for 1, which would leave nothing."""
    return round(1 - momentum, 12) if momentum < 1 else _DEFAULT_MOMENTUM


def large_eps(evidence: Evidence) -> Iterator[Finding]:
    """Find eps that outweighs the variance, or that was meant to be something else."""
    for reading in readings(evidence):
        typical = typical_variance(reading)
        if typical is not None and typical < reading.eps < _EPS_OF_NO_FRAMEWORK:
            young = is_young(reading)
            yield Finding(
                "large-eps",
                "info" if young else "warning",
                (reading.path,),
                {"eps": reading.eps, "median variance": typical, **_scale(typical, reading.eps)},
                f"In half of the channels eps is more than the variance, so the layer divides by "
                f"√eps, and its outputs have less than √½ of the scale that γ gives them"
                f"{reading.where}."
                + (" The variance is that of weights that have not been trained." * young),
                "Look again when the model is trained, or scale the inputs."
                if young
                else "Scale the inputs or set a smaller eps, with γ to make up for it in eval "
                "mode.",
                None if young else _smaller_eps(reading, min(_DEFAULT_EPS, typical / 100)),
            )
        elif reading.eps >= _EPS_OF_NO_FRAMEWORK:
            yield Finding(
                "large-eps",
                "warning",
                (reading.path,),
                {"eps": reading.eps} | _scale(typical, reading.eps),
                f"An eps of {reading.eps:g} is not the default of any framework: the second "
                f"argument of torch's batch norms is eps, where others have momentum.",
                "Name the arguments: BatchNorm2d(features, eps=1e-5, momentum=0.1).",
                _smaller_eps(reading, _DEFAULT_EPS),
            )
        elif reading.eps >= _EPS_OF_KERAS:
            yield Finding(
                "large-eps",
                "info",
                (reading.path,),
                {"eps": reading.eps},
                "This is the eps of Keras and others, not torch's 1e-5; the variances are larger.",
                "Leave it, unless weights come from a model with another eps.",
            )


def _scale(variance: float | None, eps: float) -> dict[str, float]:
    """Return which share of γ the outputs have as their scale, by name; empty where unknown."""
    return {} if variance is None else {"output scale / γ": math.sqrt(variance / (variance + eps))}


def typical_variance(reading: Reading) -> float | None:
    """Return the median variance over the channels that have not collapsed, None if unknown."""
    variance = measured_variance(reading)
    if variance is None:
        return None
    alive = variance[~is_collapsed(reading, variance) & (variance > 0)]
    return alive.median().item() if len(alive) else None


def _smaller_eps(reading: Reading, eps: float) -> Fix | None:
    """Return the fix that sets this eps, and the weight that makes up for it in eval mode."""
    module: Any = reading.module
    if not isinstance(module, AnyBatchNorm) or reading.domain or module.weight is None:
        return None
    if reading.running_var is None or reading.running_var.dim() != 1:
        return None
    action, options = f"eps = {eps:g}, and γ for it", {"eps": eps, "rescale": True}
    return by_edit(edit(reading.path, "set_numbers", action, options), needs=[reading.path])
