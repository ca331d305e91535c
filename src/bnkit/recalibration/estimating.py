"""The two estimators of population statistics, and the run that both share."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.distributed import ProcessGroup

from bnkit.batches import Call, Inputs, calls_of, number_of, refuse_iterator
from bnkit.dataflow import duplicate
from bnkit.internals import AnyBatchNorm
from bnkit.norms import Where, batch_norms, unwrapped, why_frozen, why_incomparable
from bnkit.observation import on_the_side
from bnkit.progress import counted
from bnkit.recalibration.measuring import Normalise, Sample, Statistics, measure, write
from bnkit.recalibration.ranks import over_all_ranks
from bnkit.recalibration.record import Buffers, Recalibration, buffers_of, shift_of

Estimator = Literal["batch_statistics", "layer_by_layer"]
Layers = Mapping[str, AnyBatchNorm]


@dataclass(frozen=True)
class Rule:
    """By what an input is normalised while layers are measured, and what a layer gets in the end.

    `settle(path, sample)` returns the statistics for the sample of all inputs of a layer.
    """

    normalise: Normalise
    settle: Callable[[str, Sample], Buffers]


@dataclass(frozen=True)
class Run:
    """The layers of a copy of the model, measured over all mini-batches of all ranks."""

    model: nn.Module
    layers: Layers
    calls: Callable[[], Iterator[Call]]
    group: ProcessGroup | None

    def measure(self, layers: Layers, normalise: Normalise, *, turn: int) -> dict[str, Sample]:
        """Return a sample of the inputs of `layers`; `turn` is the number of the pass."""
        return over_all_ranks(
            layers,
            lambda: measure(self.model, layers, self.calls(), normalise=normalise),
            self.group,
            turn=turn,
        )


def estimate(
    model: nn.Module,
    batches: Any,
    rule_from: Callable[[Mapping[str, Buffers]], Rule],
    *,
    inputs: Inputs | None,
    where: Where | None,
    estimator: Estimator,
    process_group: ProcessGroup | None,
    progress: bool,
) -> Recalibration:
    """Return new statistics for the batch norms of `model`, which stays as it is.

    `rule_from(old)` makes the rule from the statistics that the layers have now.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"`estimator` is {estimator!r}: choose from {tuple(ESTIMATORS)}")
    if estimator == "layer_by_layer":
        refuse_iterator(batches, "this estimator makes one pass for each layer")
    model = unwrapped(model)
    copy = duplicate(model)
    chosen = batch_norms(
        model, where, objection=lambda _, layer: why_incomparable(layer) or why_frozen(model, layer)
    )
    if not chosen.layers:
        raise ValueError(f"there is nothing to measure: {chosen.why_none(model)}")
    layers = layers_at(copy, chosen.paths)
    old = {path: buffers_of(layer) for path, layer in layers.items()}
    rule = rule_from(old)
    run = Run(copy, layers, _passes(copy, batches, inputs, progress), process_group)
    with on_the_side(copy):
        samples = ESTIMATORS[estimator](run, rule)
        new = {path: rule.settle(path, samples[path]) for path in layers if path in samples}
    idle = [path for path in layers if path not in samples]
    if not new:
        raise ValueError(
            f"none of the batch norms ran on `batches` with values in its input: "
            f"{', '.join(map(repr, idle))}"
        )
    originals = layers_at(model, tuple(new))
    return Recalibration(
        estimator,
        tuple(shift_of(path, layer, samples[path]) for path, layer in originals.items()),
        {**chosen.left_alone, **dict.fromkeys(idle, "it did not run on these mini-batches")},
        new,
        {path: old[path] for path in new},
    )


def layers_at(model: nn.Module, paths: tuple[str, ...]) -> dict[str, AnyBatchNorm]:
    """Return the batch norms of `model` at these paths."""
    found = {path: model.get_submodule(path) for path in paths}
    return {path: layer for path, layer in found.items() if isinstance(layer, AnyBatchNorm)}


def _passes(
    model: nn.Module, batches: Any, inputs: Inputs | None, progress: bool
) -> Callable[[], Iterator[Call]]:
    begun = time.monotonic()

    def one_pass() -> Iterator[Call]:
        calls = calls_of(model, batches, inputs=inputs)
        total = number_of(batches)
        return counted(calls, "measuring statistics", total=total, begun=begun, shown=progress)

    return one_pass


def _in_one_pass(run: Run, rule: Rule) -> dict[str, Sample]:
    return run.measure(run.layers, rule.normalise, turn=1)


def _layer_by_layer(run: Run, rule: Rule) -> dict[str, Sample]:
    def normalise(path: str, sample: Sample, place: str) -> Statistics | None:
        # What a layer returns matters only to layers after it, and to those that run again.
        return None if sample.moments.count < 2 else rule.normalise(path, sample, place)

    settled: dict[str, Sample] = {}
    waiting = dict(run.layers)
    while waiting:
        samples = run.measure(waiting, normalise, turn=len(settled) + 1)
        first = next(iter(samples), None)
        if first is None:  # the others do not run
            return settled
        settled[first] = samples[first]
        buffers = rule.settle(first, samples[first])
        write(waiting.pop(first), (buffers.mean, buffers.variance))
    return settled


ESTIMATORS: Mapping[str, Callable[[Run, Rule], dict[str, Sample]]] = {
    "batch_statistics": _in_one_pass,
    "layer_by_layer": _layer_by_layer,
}
