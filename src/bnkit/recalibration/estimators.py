"""The two estimators of population statistics, and the passes over mini-batches that they make."""

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Any, Literal, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from bnkit.batches import Call, Inputs, calls_of, number_of, refuse_iterator
from bnkit.dataflow import duplicate, whole
from bnkit.internals import AnyBatchNorm
from bnkit.moments import Moments
from bnkit.norms import Chosen, Where, batch_norms, unwrapped, why_frozen, why_incomparable
from bnkit.observation import on_the_side, seeing_inputs, stoppable
from bnkit.options import Default
from bnkit.progress import counted
from bnkit.recalibration.samples import Layers, Sample, Samples, over_all_ranks
from bnkit.recalibration.shifts import Buffers, Recalibration, buffers_of, shift_of

Estimator = Literal["batch_statistics", "layer_by_layer"]
Statistics = tuple[Tensor, Tensor]  # mean and variance, (C,) each

# From a path, a sample of one input and where that is, for errors; None keeps the statistics.
Normalise = Callable[[str, Sample, str], Statistics | None]
# From a path and an input: whether that says nothing about the layer's statistics.
Refuses = Callable[[str, Tensor], bool]
# From the statistics that a layer has, a sample of its inputs, and where that is, for errors.
Settle = Callable[[Buffers, Sample, str], Statistics]


class BatchesOptions(TypedDict, total=False):
    """What all verbs share that measure layers on mini-batches."""

    inputs: Annotated[Inputs | None, Default(None)]
    where: Annotated[Where | None, Default(None)]


class RecalibrationOptions(BatchesOptions, total=False):
    """What `recalibrate`, `adapt` and their other forms share; `recalibrate` explains them."""

    estimator: Annotated[Estimator, Default("batch_statistics")]
    process_group: Annotated[ProcessGroup | None, Default(None)]
    progress: Annotated[bool, Default(True)]


# Where a forward stops: before which call of which layer.
Stop = tuple[str, int]

# One pass over all mini-batches of all ranks: samples of these layers, in the order in which they
# first ran; of one layer alone where each forward stops at it.
Run = Callable[[Layers, Stop | None], Samples]


def batch_statistics(layers: Layers, run: Run) -> Samples:
    """Return samples from one pass, in which all layers normalise as in training."""
    return run(layers, None)


def layer_by_layer(
    layers: Layers, run: Run, settle: Callable[[str, Sample], Statistics]
) -> Samples:
    """Return samples from a pass for each layer, with those before it on their new statistics.

    The first pass runs the model to its end, and so shows in which order the layers run and how
    often one is called. Each other pass stops at the last call of the layer that it is for.
    """
    samples = run(layers, None)
    waiting = dict(layers)
    for place, (path, first) in enumerate(list(samples.items())):
        if place:
            samples |= run(waiting, (path, first.calls))
        write(waiting.pop(path), settle(path, samples[path]))
    return samples


def estimate(
    model: nn.Module,
    batches: Any,
    *,
    normalise: Settle,
    settle: Settle,
    counts: bool,
    **options: Unpack[RecalibrationOptions],
) -> Recalibration:
    """Return new statistics for the batch norms of `model`, which stays as it is.

    While layers are measured, one normalises each input by what `normalise` makes of it; in the end
    it gets what `settle` makes of all, and their number for num_batches_tracked if that `counts`.
    """
    estimator = options["estimator"]
    if estimator not in get_args(Estimator):
        raise ValueError(f"`estimator` is {estimator!r}: choose from {get_args(Estimator)}")
    if estimator == "layer_by_layer":
        refuse_iterator(batches, "this estimator makes one pass for each layer")
    model = whole(unwrapped(model))
    copy, chosen = duplicate(model), _measurable(model, options["where"])
    modules = {path: copy.get_submodule(path) for path in chosen.layers}
    layers = {path: layer for path, layer in modules.items() if isinstance(layer, AnyBatchNorm)}
    old = {path: buffers_of(layer) for path, layer in layers.items()}
    begun, turns = time.monotonic(), itertools.count(1)
    left_out: dict[str, str] = {}
    refuses = refusing(model, left_out)

    def by_batch(path: str, sample: Sample, place: str) -> Statistics | None:
        if estimator == "layer_by_layer" and sample.moments.count < 2:
            return None  # what it returns matters only to layers after it, and if it runs again
        return normalise(old[path], sample, place)

    def by_all(path: str, sample: Sample) -> Statistics:
        return settle(old[path], sample, f"all of `batches` give layer '{path}'")

    def run(waiting: Layers, until: Stop | None) -> Samples:
        calls = calls_of(copy, batches, inputs=options["inputs"])
        total, shown = number_of(batches), options["progress"]
        calls = counted(calls, "measuring statistics", total=total, begun=begun, shown=shown)
        return over_all_ranks(
            waiting if until is None else {until[0]: waiting[until[0]]},
            lambda: measure(copy, waiting, calls, normalise=by_batch, refuses=refuses, until=until),
            options["process_group"],
            turn=next(turns),
        )

    with on_the_side(copy):
        if estimator == "batch_statistics":
            samples = batch_statistics(layers, run)
        else:
            samples = layer_by_layer(layers, run, by_all)
        samples = {path: samples[path] for path in layers if path in samples}  # as in the model
        new = {
            path: Buffers(*by_all(path, sample), sample.inputs if counts else None)
            for path, sample in samples.items()
        }
    idle = [path for path in layers if path not in new]
    if not new and left_out:
        raise ValueError(f"there is nothing to measure: {Chosen({}, left_out).why_none(model)}")
    if not new:
        raise ValueError(
            f"none of the batch norms ran on `batches` with values in its input: "
            f"{', '.join(map(repr, idle))}"
        )
    return Recalibration(
        estimator,
        tuple(shift_of(path, layers[path], old[path], sample) for path, sample in samples.items()),
        {
            **chosen.left_alone,
            **dict.fromkeys(idle, "it did not run on these mini-batches"),
            **left_out,
        },
        new,
        {path: old[path] for path in new},
    )


def _measurable(model: nn.Module, where: Where | None) -> Chosen:
    chosen = batch_norms(
        model, where, objection=lambda _, layer: why_incomparable(layer) or why_frozen(model, layer)
    )
    if not chosen.layers:
        raise ValueError(f"there is nothing to measure: {chosen.why_none(model)}")
    return chosen


def refusing(model: nn.Module, left_out: dict[str, str]) -> Refuses:
    """Return what refuses inputs of layers of `model` that say nothing about their statistics.

    It notes by their paths, in `left_out`, why.
    """
    asked: dict[str, str | None] = {}

    def refuses(path: str, values: Tensor) -> bool:
        if path not in asked:
            why = asked[path] = why_incomparable(model.get_submodule(path), tuple(values.shape))
            if why is not None:
                left_out[path] = why
        return asked[path] is not None

    return refuses


def measure(
    model: nn.Module,
    layers: Layers,
    calls: Iterable[Call],
    *,
    normalise: Normalise,
    refuses: Refuses,
    until: Stop | None = None,
) -> Samples:
    """Return a sample of each layer's inputs over all calls, in the order in which they first ran.

    `model` runs in the mode that it is in, each forward to its end or `until` that call. What
    `normalise` returns for an input is what the layer normalises it by; these statistics are
    written into its buffers, so pass a copy. Layers that did not run, and those of which `refuses`
    refuses an input, are not in the result. Raises ValueError, naming the mini-batch and the layer,
    for inputs that are not finite.
    """
    seen: Samples = {}
    forward: Samples = {}  # what the forward that runs has shown
    number = 0

    def see(path: str, _layer: nn.Module, values: Tensor) -> None:
        layer = layers[path]
        if refuses(path, values):
            return
        if values.dim() < 2 or values.shape[1] != layer.num_features or not values.numel():
            return  # the layer itself says what is wrong
        sample = Sample(Moments.of(values), inputs=1, rows=len(values))
        if until is None or path == until[0]:
            forward[path] = forward[path] + sample if path in forward else sample
            if (path, forward[path].inputs) == until:
                stop()
        statistics = normalise(path, sample, f"mini-batch {number} gives layer '{path}'")
        if statistics is not None:
            write(layer, statistics)

    with seeing_inputs(model, layers, see):
        for number, (args, kwargs) in enumerate(calls, start=1):
            with stoppable() as stop:
                model(*args, **kwargs)
            _refuse_non_finite(forward, number)
            for path, sample in forward.items():
                whole = replace(sample, calls=sample.inputs)
                seen[path] = seen[path] + whole if path in seen else whole
            forward.clear()
    return seen


def write(layer: AnyBatchNorm, statistics: Statistics) -> None:
    """Write mean and variance over the running statistics of `layer`, in their memory."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(statistics[0])
    layer.running_var.copy_(statistics[1])


def _refuse_non_finite(samples: Samples, number: int) -> None:
    sums = [sample.moments.deviations.sum() for sample in samples.values()]
    # One flag for all layers: each answer that Python needs makes the host wait for the GPU.
    if not sums or torch.stack([total.to(sums[0]) for total in sums]).isfinite().all():
        return
    path = next(path for path, total in zip(samples, sums, strict=True) if not total.isfinite())
    raise ValueError(
        f"mini-batch {number} gives layer '{path}' values that are not finite (NaN, infinite, or "
        f"too large for their squares): leave it out of `batches`, or fix what comes before that "
        f"layer"
    )
