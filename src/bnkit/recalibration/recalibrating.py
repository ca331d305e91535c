"""`recalibrate`: running statistics replaced by those of the whole population of inputs."""

from typing import Any

from torch import nn
from torch.distributed import ProcessGroup

from bnkit.batches import Inputs
from bnkit.dataflow import duplicate
from bnkit.norms import Where
from bnkit.recalibration.estimating import Estimator, Rule, estimate
from bnkit.recalibration.measuring import Sample, Statistics
from bnkit.recalibration.record import Buffers, Recalibration


def recalibrate(
    model: nn.Module,
    batches: Any,
    *,
    inputs: Inputs | None = None,
    where: Where | None = None,
    estimator: Estimator = "batch_statistics",
    process_group: ProcessGroup | None = None,
    progress: bool = True,
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
    classes, and those in eval mode inside of a model in training mode.
    `plan_recalibration` says which they are, and how far the statistics of the others were off.

    Where torch.distributed is initialised the statistics are pooled over the ranks of
    `process_group` (None: the default group), all of which must call this; a rank may have no
    mini-batch. A bar shows the `progress` after two seconds. The random generators are given back
    as they were before.

    Raises ValueError for a model without batch norms to measure, for `batches` that are empty or
    used up, for a mini-batch with one value per channel and for one with values that are not
    finite; TypeError for what is no model or no mini-batch. What `batches` and the model raise
    passes through as it is. `model` stays as it is in every case.

    >>> import torch
    >>> model = nn.Sequential(nn.BatchNorm1d(1)).eval()
    >>> model = recalibrate(model, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]] * 2)])
    >>> model[0].running_mean.item(), model[0].running_var.item()
    (3.75, 6.916666507720947)
    """
    changed = duplicate(model)
    plan_recalibration(
        model,
        batches,
        inputs=inputs,
        where=where,
        estimator=estimator,
        process_group=process_group,
        progress=progress,
    ).apply_(changed)
    return changed


def recalibrate_(
    model: nn.Module,
    batches: Any,
    *,
    inputs: Inputs | None = None,
    where: Where | None = None,
    estimator: Estimator = "batch_statistics",
    process_group: ProcessGroup | None = None,
    progress: bool = True,
) -> Recalibration:
    """Recalibrate `model` in place, as inside a training loop, and return how far it was off.

    As `recalibrate` in all else. The statistics are measured on a copy and written into the buffers
    at the end, so parameters, modes, hooks and the random generators stay as they are, and after
    an error everything does. A model inside of DataParallel, DistributedDataParallel or
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
    plan = plan_recalibration(
        model,
        batches,
        inputs=inputs,
        where=where,
        estimator=estimator,
        process_group=process_group,
        progress=progress,
    )
    plan.apply_(model)
    return plan


def plan_recalibration(
    model: nn.Module,
    batches: Any,
    *,
    inputs: Inputs | None = None,
    where: Where | None = None,
    estimator: Estimator = "batch_statistics",
    process_group: ProcessGroup | None = None,
    progress: bool = True,
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
        model,
        batches,
        lambda _: Rule(own_statistics, _population),
        inputs=inputs,
        where=where,
        estimator=estimator,
        process_group=process_group,
        progress=progress,
    )


def own_statistics(_path: str, sample: Sample, place: str) -> Statistics:
    """Return the mean and biased variance of a mini-batch, by which training normalises it."""
    if sample.moments.count < 2:
        raise ValueError(
            f"{place} 1 value per channel, by whose statistics it cannot be normalised: use larger "
            f"mini-batches, or leave the last incomplete one out (drop_last=True of a DataLoader)"
        )
    return sample.moments.mean, sample.moments.variance


def _population(path: str, sample: Sample) -> Buffers:
    if sample.moments.count < 2:
        raise ValueError(
            f"all of `batches` give layer '{path}' 1 value per channel, which has no variance: "
            f"pass more"
        )
    return Buffers(sample.moments.mean, sample.moments.unbiased_variance, sample.inputs)
