"""`recalibrate` and `adapt`: running statistics replaced by those of data, or drawn to them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Unpack

from torch import nn

from bnkit.dataflow import duplicate
from bnkit.options import with_options
from bnkit.recalibration.estimators import RecalibrationOptions, Statistics, estimate
from bnkit.recalibration.samples import Sample
from bnkit.recalibration.shifts import Buffers, Recalibration

PRIOR = 16.0


@with_options
def recalibrate(
    model: nn.Module, batches: Any, **options: Unpack[RecalibrationOptions]
) -> nn.Module:
    """Return a copy of `model` whose batch norms hold the statistics of `batches`.

    Running averages forget old mini-batches and lag behind the weights. This replaces them by the
    mean and the unbiased variance of all inputs of each layer, pooled exactly over mini-batches of
    any sizes, the variance between them included; `num_batches_tracked` becomes the number of
    mini-batches (of calls, for a layer that is called several times in a forward). `batches` are in
    any form that `bnkit.batches.calls_of` lists, and so is `inputs`; they must lie on the device
    of the model. All else is in eval mode, and without gradients.

    There are two estimators. "batch_statistics" makes one pass, in which each batch norm normalises
    by the statistics of the mini-batch, as in training. "layer_by_layer" is exact for the network
    in eval mode: it makes a pass for each layer, in the order in which they run, with all layers
    before it normalising by their new statistics; `batches` must be re-iterable and give the same
    mini-batches again. A layer that is called several times in a forward has no exact statistics,
    since its own inputs depend on them; meanwhile it normalises by those of the mini-batch.

    `where(path, layer)` chooses among the batch norms. Frozen ones stay as they are and normalise
    by the statistics that they have: those of momentum 0 or with track_running_stats=False, frozen
    classes, and those in eval mode inside a model in training mode.
    `plan_recalibration` says which they are, and how far the statistics of the others were off.

    Where torch.distributed is initialised the statistics are pooled over the ranks of
    `process_group` (None: the default group), all of which must call this; a rank may have no
    mini-batch. Of a model that is sharded over them (fully_shard, or DTensors) all parts are
    gathered, and the copy is plain. A bar shows the `progress` after two seconds. The random
    generators are given back as they were before.

    Raises ValueError for a model without batch norms to measure, for `batches` that are empty or
    used up, for a mini-batch with one value per channel and for one with values that are not
    finite; TypeError for what is not a model or a mini-batch. What `batches` and the model raise
    passes through as it is. `model` stays as it is in every case.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(1)).eval()
    >>> model = recalibrate(model, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]] * 2)])
    >>> model[0].running_mean.item(), model[0].running_var.item()
    (3.75, 6.916666507720947)
    """
    changed = duplicate(model, gathers=True)
    plan_recalibration(model, batches, **options).apply_(changed)
    return changed


@with_options
def recalibrate_(
    model: nn.Module, batches: Any, **options: Unpack[RecalibrationOptions]
) -> Recalibration:
    """Recalibrate `model` in place, as inside a training loop, and return how far it was off.

    As `recalibrate` in all else. The statistics are measured on a copy and written into the buffers
    at the end, so parameters, modes, hooks and the random generators stay as they are, and after
    an error everything does. A model inside DataParallel, DistributedDataParallel or
    torch.compile is unwrapped. `revert_` of what is returned takes the change back.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> report = recalibrate_(model, torch.tensor([[1.0], [2.0], [6.0]]))
    >>> print(report)
     layer   kind          mean off by   running variance / variance   measured on
    ──────────────────────────────────────────────────────────────────────────────────────────
     0       BatchNorm1d   1.13 std      0.143 to 0.143                1 mini-batch, 3 values
    >>> report.revert_(model)
    >>> model[0].running_mean
    tensor([0.])
    """
    plan = plan_recalibration(model, batches, **options)
    plan.apply_(model)
    return plan


@with_options
def plan_recalibration(
    model: nn.Module, batches: Any, **options: Unpack[RecalibrationOptions]
) -> Recalibration:
    """Return what `recalibrate` would do: the new statistics, and how far the old ones are off.

    `apply(model)` of what is returned makes the recalibrated copy. Arguments and errors are those
    of `recalibrate`; models in wrappers are unwrapped.

    >>> import torch
    >>> plan = plan_recalibration(nn.BatchNorm1d(1), torch.tensor([[1.0], [2.0], [6.0]]))
    >>> round(plan.layers[0].mean_shift, 3), plan.apply(nn.BatchNorm1d(1)).running_mean
    (1.134, tensor([3.]))
    """
    return estimate(
        model, batches, normalise=_of_the_mini_batch, settle=_population, counts=True, **options
    )


@with_options
def adapt(
    model: nn.Module,
    batches: Any,
    *,
    prior: float = PRIOR,
    **options: Unpack[RecalibrationOptions],
) -> nn.Module:
    """Return a copy of `model` whose statistics are drawn towards those of other, unlabelled data.

    With the source's statistics μ_s, σ²_s (the running ones), the target's μ_t, σ²_t over the n
    rows of `batches`, and the `prior` N, the number of rows that the source is worth, a layer gets

        μ = N / (N + n) · μ_s + n / (N + n) · μ_t        σ² likewise

    (Schneider et al., "Improving robustness against common corruptions by covariate shift
    adaptation", NeurIPS 2020, section 3). `prior=0` takes the target's alone, math.inf keeps the
    source's. The variance is the unbiased one, as running statistics store it;
    `num_batches_tracked` stays.

    Of the estimators of `recalibrate`, "batch_statistics" normalises each mini-batch by its own
    statistics blended with the source's, so that for one mini-batch this is the paper's method, and
    "layer_by_layer" is exact in eval mode for several. All else is as in `recalibrate`, frozen
    layers, torch.distributed and errors included; one value per channel, as of a single row, is an
    error for `prior=0` alone. Raises ValueError for a `prior` that is negative or no number.
    `model` stays as it is, so nothing is lost; `adapted` adapts a model for one block.

    >>> import torch
    >>> model = nn.BatchNorm1d(1)
    >>> adapt(model, torch.tensor([[2.0], [4.0]]), prior=2).running_mean
    tensor([1.5000])
    """
    changed = duplicate(model, gathers=True)
    plan_adaptation(model, batches, prior=prior, **options).apply_(changed)
    return changed


@with_options
@contextmanager
def adapted(
    model: nn.Module,
    batches: Any,
    *,
    prior: float = PRIOR,
    **options: Unpack[RecalibrationOptions],
) -> Iterator[Recalibration]:
    """Let `model` itself have the statistics of `adapt` while the block runs, as for predictions.

    Afterwards, also by an exception, its statistics are those from before, bit by bit. Gives the
    record of how far the statistics of `batches` are from the model's.

    >>> import torch
    >>> model = nn.BatchNorm1d(1).eval()
    >>> with adapted(model, torch.tensor([[2.0], [4.0]]), prior=2):
    ...     model.running_mean
    tensor([1.5000])
    >>> model.running_mean
    tensor([0.])
    """
    plan = plan_adaptation(model, batches, prior=prior, **options)
    try:
        try:
            plan.apply_(model)
            yield plan
        finally:
            plan.revert_(model)
    finally:
        plan.revert_(model)  # once more, as Ctrl-C may have stopped the first halfway


@with_options
def plan_adaptation(
    model: nn.Module,
    batches: Any,
    *,
    prior: float = PRIOR,
    **options: Unpack[RecalibrationOptions],
) -> Recalibration:
    """Return what `adapt` would do: the blended statistics, and how far the target's are off.

    `apply(model)` of what is returned makes the adapted copy, `apply_` adapts in place, and
    `revert_` takes that back. Arguments and errors are those of `adapt`.

    >>> import torch
    >>> plan = plan_adaptation(nn.BatchNorm1d(1), torch.tensor([[2.0], [4.0]]), prior=2)
    >>> round(plan.layers[0].mean_shift, 3)
    2.121
    """
    if not isinstance(prior, int | float) or isinstance(prior, bool) or not prior >= 0:
        raise ValueError(
            f"`prior` is {prior!r}: pass the number of rows that the source's statistics are "
            f"worth, 0 or more (math.inf keeps them)"
        )
    blend = partial(_blended, float(prior))
    return estimate(model, batches, normalise=blend, settle=blend, counts=False, **options)


def _of_the_mini_batch(_old: Buffers, sample: Sample, place: str) -> Statistics:
    """Return the mean and biased variance of a mini-batch, by which training normalises it."""
    if sample.moments.count < 2:
        raise ValueError(
            f"{place} 1 value per channel, by whose statistics it cannot be normalised: use larger "
            f"mini-batches, or leave the last incomplete one out (drop_last=True of a DataLoader)"
        )
    return sample.moments.mean, sample.moments.variance


def _population(_old: Buffers, sample: Sample, place: str) -> Statistics:
    if sample.moments.count < 2:
        raise ValueError(f"{place} 1 value per channel, which has no variance: pass more")
    return sample.moments.mean, sample.moments.unbiased_variance


def _blended(prior: float, old: Buffers, sample: Sample, place: str) -> Statistics:
    if not prior:
        _of_the_mini_batch(old, sample, place)  # refuses one value per channel
    share = 1.0 if math.isinf(prior) else prior / (prior + sample.rows)  # of the source
    mean, variance = old.mean.to(sample.moments.mean), old.variance.to(sample.moments.mean)
    return (
        share * mean + (1 - share) * sample.moments.mean,
        share * variance + (1 - share) * sample.unbiased_variance,
    )
