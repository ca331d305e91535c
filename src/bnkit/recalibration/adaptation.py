"""`adapt`: statistics of other data, blended with those that the model was trained on."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.distributed import ProcessGroup

from bnkit.batches import Inputs
from bnkit.dataflow import duplicate
from bnkit.norms import Where
from bnkit.recalibration.estimating import Estimator, Rule, estimate
from bnkit.recalibration.measuring import Sample, Statistics, unbiased
from bnkit.recalibration.recalibrating import own_statistics
from bnkit.recalibration.record import Buffers, Recalibration

PRIOR = 16.0


def adapt(
    model: nn.Module,
    batches: Any,
    *,
    prior: float = PRIOR,
    inputs: Inputs | None = None,
    where: Where | None = None,
    estimator: Estimator = "batch_statistics",
    process_group: ProcessGroup | None = None,
    progress: bool = True,
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
    changed = duplicate(model)
    plan_adaptation(
        model,
        batches,
        prior=prior,
        inputs=inputs,
        where=where,
        estimator=estimator,
        process_group=process_group,
        progress=progress,
    ).apply_(changed)
    return changed


@contextmanager
def adapted(
    model: nn.Module,
    batches: Any,
    *,
    prior: float = PRIOR,
    inputs: Inputs | None = None,
    where: Where | None = None,
    estimator: Estimator = "batch_statistics",
    process_group: ProcessGroup | None = None,
    progress: bool = True,
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
    plan = plan_adaptation(
        model,
        batches,
        prior=prior,
        inputs=inputs,
        where=where,
        estimator=estimator,
        process_group=process_group,
        progress=progress,
    )
    try:
        plan.apply_(model)
        yield plan
    finally:
        plan.revert_(model)


def plan_adaptation(
    model: nn.Module,
    batches: Any,
    *,
    prior: float = PRIOR,
    inputs: Inputs | None = None,
    where: Where | None = None,
    estimator: Estimator = "batch_statistics",
    process_group: ProcessGroup | None = None,
    progress: bool = True,
) -> Recalibration:
    """Return what `adapt` would do: the blended statistics, and how far the target's are off.

    `apply(model)` of what is returned makes the adapted copy, `apply_` adapts in place, and
    `revert_` takes that back. Arguments and errors are those of `adapt`.

    >>> import torch
    >>> plan = plan_adaptation(nn.BatchNorm1d(1), torch.tensor([[2.0], [4.0]]), prior=2)
    >>> round(plan.layers[0].mean_shift, 3)
    2.121
    """
    return estimate(
        model,
        batches,
        partial(_blending, _checked(prior)),
        inputs=inputs,
        where=where,
        estimator=estimator,
        process_group=process_group,
        progress=progress,
    )


def _checked(prior: float) -> float:
    if not isinstance(prior, int | float) or isinstance(prior, bool) or not prior >= 0:
        raise ValueError(
            f"`prior` is {prior!r}: give the number of rows that the source's statistics are "
            f"worth, 0 or more (math.inf keeps them)"
        )
    return float(prior)


def _blending(prior: float, source: Mapping[str, Buffers]) -> Rule:
    def blend(path: str, sample: Sample) -> Statistics:
        share = 1.0 if math.isinf(prior) else prior / (prior + sample.rows)  # of the source
        old, moments = source[path], sample.moments
        mean, variance = old.mean.to(moments.mean), old.variance.to(moments.mean)
        return (
            share * mean + (1 - share) * moments.mean,
            share * variance + (1 - share) * unbiased(moments),
        )

    def normalise(path: str, sample: Sample, place: str) -> Statistics:
        if not prior:
            own_statistics(path, sample, place)  # refuses one value per channel
        return blend(path, sample)

    return Rule(normalise, lambda path, sample: Buffers(*blend(path, sample), batches=None))
