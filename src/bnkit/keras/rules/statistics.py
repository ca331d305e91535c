"""Rules on statistics in Keras models: the moving ones, and those of mini-batches."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bnkit.diagnosis.finding import Finding, Severity
from bnkit.diagnosis.rules.noise import effective_values, noise_of
from bnkit.diagnosis.rules.numbers import typical_variance
from bnkit.diagnosis.rules.reading import ALL, HALF, QUARTER, is_finite
from bnkit.diagnosis.rules.staleness import (
    CHANGE,
    distance_in_errors,
    off_by_more_than_chance,
    tolerance,
)
from bnkit.keras import fixes
from bnkit.keras.evidence import Evidence, Norm

# Below, most of an average is the last mini-batch or two: no default of any framework.
_LEAST_MOMENTUM = 0.5
_EPS32 = float(torch.finfo(torch.float32).eps)
# Of the variance and epsilon together, lost to rounding: by a hundredth the scale is off by half
# of that; by all of it the computed variance can be below 0.
_INACCURATE = 0.01


def never_updated(evidence: Evidence) -> Iterator[Finding]:
    """Find moving statistics that are still those of the constructor."""
    for norm in evidence.norms:
        if not norm.reading.untouched:
            continue
        has_trained = _has_trained(norm)
        severity: Severity = "error" if has_trained and norm.trains else "info"
        if not norm.trains:
            severity = "warning"
        yield Finding(
            "never-updated",
            severity,
            (norm.path,),
            {"gamma and beta have trained": has_trained},
            "The moving mean is 0 and the moving variance 1 in every channel, so inference "
            "normalises nothing."
            + (
                " Gamma and beta have trained: a loop of one's own calls the model without "
                "training=True."
                if severity == "error"
                else " The layer is frozen, so that this stays so."
                if severity == "warning"
                else " Training will update them."
            ),
            "Call model(x, training=True) in the training loop, and measure them for now: "
            "model = bnkit.keras.recalibrate(model, batches).",
            _measured_anew(norm),
        )


def non_finite(evidence: Evidence) -> Iterator[Finding]:
    """Find NaN, infinities and negative variances in weights, and in what layers are given."""
    for norm in evidence.norms:
        bad = {n: int((~t.isfinite()).sum()) for n, t in norm.reading.tensors.items()}
        variance = norm.reading.running_var
        negative = 0 if variance is None else int((variance < 0).sum())
        bad = {_NAMES[name]: count for name, count in bad.items() if count}
        if negative:
            bad["negative moving variances"] = negative
        if bad:
            statistics = not {"gamma", "beta"} & set(bad)
            yield Finding(
                "non-finite",
                "error",
                (norm.path,),
                bad,
                "These values cannot be computed with: the channels are NaN or infinite in "
                "inference, or will be."
                + (" Keras on torch makes such variances itself." if negative else ""),
                "Measure the statistics anew, model = bnkit.keras.recalibrate(model, batches), or "
                "go back to a checkpoint.",
                _measured_anew(norm) if statistics else None,
            )
    given = [n for n in evidence.norms if not all(is_finite(s.moments) for s in n.reading.seen)]
    if given:
        yield Finding(
            "non-finite",
            "error",
            (given[0].path,),
            {"layers that are given such values": len(given)},
            "The layer is given NaN, infinite values, or values too large for their squares; it is "
            "the first one.",
            "Look at the data, and at the weights between this layer and the one before.",
        )


def torch_momentum(evidence: Evidence) -> Iterator[Finding]:
    """Find a momentum that reads as torch's: the share of the new mini-batch."""
    for norm in evidence.norms:
        momentum = float(norm.layer.momentum)
        if momentum < _LEAST_MOMENTUM and norm.trains:
            kept = round(1 - momentum, 12) if momentum > 0 else 0.99
            yield Finding(
                "torch-momentum",
                "warning",
                (norm.path,),
                {"momentum": momentum},
                f"Keras' momentum is the share that is kept: by {momentum:g} the moving statistics "
                f"are nearly those of the last mini-batch. In torch it is the share of the new "
                f"one.",
                f"Set momentum={kept:g}, then recalibrate.",
                fixes.in_turn(fixes.with_options(norm.path, momentum=kept), _measured_anew(norm)),
            )


def half_precision_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find moving statistics that are kept in half precision."""
    for norm in evidence.norms:
        dtype, momentum = norm.layer.moving_mean.dtype, norm.layer.momentum
        if dtype in ("float16", "bfloat16"):
            steps = torch.finfo(getattr(torch, dtype)).eps
            yield Finding(
                "half-precision-statistics",
                "warning",
                (norm.path,),
                {"dtype": dtype, "smallest relative step": steps},
                f"By momentum {momentum:g} an average takes {1 - momentum:.2g} of each difference, "
                f"and in {dtype} it takes in no change under {steps:.1g} of its value: it stands "
                f"still where it should follow.",
                f"Keep float32 variables: the dtype policy mixed_{dtype} instead of {dtype}.",
                fixes.in_turn(fixes.in_float32(norm.path), _measured_anew(norm)),
            )


def large_eps(evidence: Evidence) -> Iterator[Finding]:
    """Find an epsilon that outweighs the variance."""
    for norm in evidence.norms:
        typical = typical_variance(norm.reading)
        if typical is None or typical >= norm.reading.eps:
            continue
        smaller = min(1e-5, typical / 100)
        yield Finding(
            "large-eps",
            "warning",
            (norm.path,),
            {"epsilon": norm.reading.eps, "median variance": typical},
            "In half of the channels epsilon is more than the variance, so the layer divides by "
            "√epsilon, and its outputs have less than √½ of the scale that gamma gives them. "
            "Keras' default is 0.001.",
            f"Scale the inputs, or set epsilon={smaller:.1g}.",
            fixes.with_smaller_epsilon(norm.path, smaller) if norm.layer.scale else None,
        )


def one_value_per_channel(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that get one value per channel in a mini-batch of training."""
    for norm in evidence.norms:
        few = [seen for seen in norm.reading.seen if seen.fewest < 2]
        if norm.trains and few:
            yield Finding(
                "one-value-per-channel",
                "error",
                (norm.path,),
                {"values per channel": few[0].fewest, "mini-batch": few[0].smallest},
                "One value has no variance. Keras raises no error: in training the output is beta, "
                "whatever the input, and the moving variance shrinks at each such step.",
                "Use larger mini-batches, leave the last incomplete one out (drop_remainder=True), "
                "or leave out batch norm after the pooling to 1×1.",
            )


def cancelled_variance(evidence: Evidence) -> Iterator[Finding]:
    """Find variances that Keras on torch computes as E[x²] − E[x]² of means far from 0."""
    if evidence.backend != "torch":
        return
    for norm in evidence.norms:
        found = _mean_and_variance(norm)
        if found is None or not norm.trains:
            continue
        mean, variance = found
        lost = _EPS32 * (mean.square() + variance) / (variance + norm.reading.eps)
        worst = lost.max().item()
        if not worst >= _INACCURATE:
            continue
        yield Finding(
            "cancelled-variance",
            "error" if worst >= 1 else "warning",
            (norm.path,),
            {
                "share of the variance lost to rounding": worst,
                "largest |mean| / standard deviation": (mean.abs() / variance.sqrt()).max().item(),
                "channels": int((lost >= _INACCURATE).sum()),
            },
            "On its torch backend Keras computes the variance of a mini-batch as E[x²] − E[x]² in "
            "float32, which loses its digits where the mean is large beside the spread: it can be "
            "negative, and then the output is NaN.",
            "Subtract the mean of the data before (a Normalization layer), or train on the jax or "
            "TensorFlow backend. bnkit.keras.recalibrate measures in float64.",
        )


def stale_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find moving statistics that are not those of the given mini-batches."""
    for norm in evidence.norms:
        off = off_by_more_than_chance(norm.reading)
        if off is None:
            continue
        change, of_model = off.change, evidence.output_change
        least = change if of_model is None else min(change, of_model)
        fresh = norm.reading.untouched and not _has_trained(norm)
        severity: Severity = "error" if least >= ALL else "warning" if least >= QUARTER else "info"
        yield Finding(
            "stale-statistics",
            "info" if fresh or not norm.trains else severity,
            (norm.path,),
            {
                "output change": change,
                "threshold": tolerance(off),
                "standard errors": distance_in_errors(off),
                "mean off by (std)": off.shift,
                "momentum": float(norm.layer.momentum),
            },
            "The moving statistics are not those of these mini-batches, and the layer's output "
            "moves by such a share of its size. With momentum 0.99 they lag some hundred steps "
            "behind the weights."
            + ("" if norm.trains else " The layer is frozen, perhaps on purpose."),
            "Measure them anew: model = bnkit.keras.recalibrate(model, batches).",
            _measured_anew(norm) if norm.trains else None,
        )


def noisy_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find layers that are trained by the statistics of too few independent values."""
    for norm in evidence.norms:
        values = effective_values(norm.reading)
        noise = noise_of(values)
        if norm.trains and noise > QUARTER:
            yield Finding(
                "noisy-statistics",
                "warning" if noise > HALF else "info",
                (norm.path,),
                {"effective values per channel": values, "output noise": noise},
                "The statistics of a mini-batch are worth those of few independent values per "
                "channel: chance moves the output by such a share of its size.",
                "Use larger mini-batches, BatchNormalization(renorm=True), or a "
                "GroupNormalization, which needs no mini-batch.",
            )


def train_eval_gap(evidence: Evidence) -> Iterator[Finding]:
    """Find models whose outputs in inference are not those by the statistics of mini-batches."""
    change = evidence.output_change
    if change is None or not change > CHANGE:
        return
    behind = [n for n in evidence.norms if n.trains and off_by_more_than_chance(n.reading)]
    if behind:
        fresh = all(n.reading.untouched and not _has_trained(n) for n in behind)
        severity: Severity = (
            "error" if change >= ALL else "warning" if change >= QUARTER else "info"
        )
        yield Finding(
            "train-eval-gap",
            "info" if fresh else severity,
            tuple(norm.path for norm in behind),
            {"output change": change},
            "On the same data the outputs in inference differ from those of training by such a "
            "share of their size: training looks well, and evaluate does not.",
            "Measure the statistics anew: model = bnkit.keras.recalibrate(model, batches). "
            "bnkit.keras.explain_gap shows where it begins.",
        )


_NAMES = {
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
    "weight": "gamma",
    "bias": "beta",
}


def _has_trained(norm: Norm) -> bool:
    """Return whether gamma or beta are no longer those of the constructor."""
    held = norm.reading.tensors
    gamma, beta = held.get("weight"), held.get("bias")
    return bool(
        (gamma is not None and (gamma != 1).any()) or (beta is not None and (beta != 0).any())
    )


def _measured_anew(norm: Norm) -> fixes.Fix | None:
    compared = norm.reading.compared
    if compared is None:
        return None
    given = compared.given
    return fixes.measured(norm.path, given.mean.numpy(), given.variance.numpy())


def _mean_and_variance(norm: Norm) -> tuple[Tensor, Tensor] | None:
    """Return those of what it was given, else the moving ones if they have been updated."""
    given = norm.reading.moments
    if given is not None:
        return given.mean, given.variance
    mean, variance = norm.reading.running_mean, norm.reading.running_var
    if norm.reading.untouched or mean is None or variance is None or bool((variance <= 0).any()):
        return None
    return mean, variance
