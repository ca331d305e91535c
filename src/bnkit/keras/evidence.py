"""`Evidence`: everything that the rules for Keras look at, gathered once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import torch

from bnkit.diagnosis.evidence import Seen
from bnkit.diagnosis.rules.reading import Reading
from bnkit.diagnosis.runs import pooled, seen_of
from bnkit.keras.batches import inputs_in
from bnkit.keras.gap import outputs_of_run, relative, squares_of
from bnkit.keras.graph import Call, Graph, graphs_of
from bnkit.keras.kernels import array_of, arrays_of
from bnkit.keras.observation import Statistics, normalising_by
from bnkit.keras.rebuilding import rebuilt
from bnkit.keras.recalibration import moments_of_rows, objection_to_measuring
from bnkit.keras.roles import batch_norms_of, is_batch_norm
from bnkit.moments import Moments

NOTHING_TO_RUN = "no mini-batches were given"


@dataclass(frozen=True, eq=False)
class Norm:
    """A batch norm of a Keras model: its calls, and a reading of what it holds and was given.

    The numbers of the reading are in torch's terms: its momentum is 1 − that of Keras, and `frozen`
    is what `trainable=False` makes.
    """

    path: str
    layer: Any
    places: tuple[tuple[Graph, Call], ...]
    reading: Reading

    @property
    def trains(self) -> bool:
        """Whether it normalises by the mini-batch in training."""
        return not self.reading.frozen


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the rules look at; they change none of it.

    `model` is the user's own, with its compilation. `output_change` is the root mean square of the
    difference of its outputs in inference from those by batch statistics, over that of the latter;
    None where nothing was run, for the reason in `failure`. `layers` are all layers by their paths.
    """

    model: Any
    graphs: tuple[Graph, ...]
    norms: tuple[Norm, ...]
    output_change: float | None = None
    failure: str = ""
    backend: str = field(default_factory=keras.backend.backend)

    @property
    def layers(self) -> dict[str, Any]:
        """All layers and operations by their paths."""
        return layers_of(self.graphs)

    def times_called(self, layer: Any) -> int:
        """Return how many calls of a layer there are in one forward."""
        return sum(call.operation is layer for graph in self.graphs for call in graph.calls)


def layers_of(graphs: Any) -> dict[str, Any]:
    """Return all layers and operations of these graphs by their paths."""
    return {call.path: call.operation for graph in graphs for call in graph.calls}


def gather(model: Any, batches: Any = None) -> Evidence:
    """Return the evidence on a Sequential or Functional model, which stays as it is.

    Each mini-batch runs twice, in a copy: with batch norms that normalise by its statistics, and in
    inference. A model that fails on it is no error: `failure` says why.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(name="n")])
    >>> [norm.path for norm in gather(model, np.zeros((4, 2))).norms]
    ['n']
    """
    graphs = tuple(graphs_of(model))
    run = _Run(rebuilt(model, {}))
    if batches is not None:
        run.over(batches)
    places: dict[int, list[tuple[Graph, Call]]] = {}
    for graph in graphs:
        for call in graph.calls:
            if is_batch_norm(call.operation):
                places.setdefault(id(call.operation), []).append((graph, call))
    norms = tuple(
        Norm(path, layer, tuple(places[id(layer)]), _reading(path, layer, run.seen.get(path, [])))
        for path, layer in batch_norms_of(model).items()
    )
    change = relative(run.squares) if run.squares and not run.failure else None
    failure = run.failure or (NOTHING_TO_RUN if batches is None else "")
    return Evidence(model, graphs, norms, change, failure)


def _reading(path: str, layer: Any, seen: list[Seen]) -> Reading:
    names = {"moving_mean": "running_mean", "moving_variance": "running_var"}
    names |= {"gamma": "weight", "beta": "bias"}
    held = arrays_of(layer)
    return Reading(
        path=path,
        kind=type(layer).__name__,
        names={},
        tensors={
            ours: torch.from_numpy(held[name]) for name, ours in names.items() if name in held
        },
        eps=float(layer.epsilon),
        momentum=round(1 - layer.momentum, 12),
        frozen=not layer.trainable,
        seen=tuple(seen),
    )


@dataclass(eq=False)
class _Run:
    """What is seen of a copy of the model: per batch norm a `Seen` for each call in a forward."""

    model: Any
    seen: dict[str, list[Seen]] = field(default_factory=dict)
    squares: list[tuple[float, float]] = field(default_factory=list)
    failure: str = ""

    def over(self, batches: Any) -> None:
        layers = batch_norms_of(self.model)
        own = rebuilt(self.model, {})  # the statistics of the other are written over
        for number, inputs in enumerate(inputs_in(self.model, batches), start=1):
            calls: dict[str, list[Seen]] = {path: [] for path in layers}
            try:
                with normalising_by(layers, _Seeing(layers, calls, number)):
                    by_batch = outputs_of_run(self.model, inputs)
                in_inference = outputs_of_run(own, inputs)
            except Exception as error:  # noqa: BLE001  a model may raise anything
                self.failure = f"the model fails on a mini-batch: {type(error).__name__}: {error}"
                return
            self.squares += map(squares_of, by_batch, in_inference)
            for path, now in calls.items():
                self.seen[path] = pooled(self.seen.get(path, []), now)


@dataclass(frozen=True, eq=False)
class _Seeing:
    """Sees what batch norms get in one forward; returns what they normalise by in training."""

    layers: Mapping[str, Any]
    calls: dict[str, list[Seen]]
    number: int  # of the mini-batch

    def __call__(self, path: str, x: Any, mask: Any) -> Statistics | None:
        layer = self.layers[path]
        seen = _seen(layer, x, mask, self.number)
        self.calls[path].append(seen)
        if objection_to_measuring(layer) is not None:
            return None
        return seen.moments.mean.numpy(), seen.moments.variance.numpy()


def _seen(layer: Any, x: Any, mask: Any, number: int) -> Seen:
    values = np.ascontiguousarray(np.moveaxis(array_of(x), layer.axis, 1))  # (N, C, …)
    found = seen_of(torch.from_numpy(values), len(values), number)
    if mask is None:
        return found
    real = np.moveaxis(values, 1, -1)[np.broadcast_to(array_of(mask).astype(bool), _places(values))]
    moments, rows = Moments.of(torch.from_numpy(real)), moments_of_rows(layer, x, mask)
    return Seen(moments, rows, found.of_batches, found.shape, moments.count, number)


def _places(values: Any) -> tuple[int, ...]:
    return (len(values), *values.shape[2:])
