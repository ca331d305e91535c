"""Rules on what stands around a batch norm of a Keras model, and on how it is called."""

import math
from collections.abc import Callable, Iterator
from itertools import combinations
from types import SimpleNamespace
from typing import Any

from keras import layers as L

from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules.distances import by_chance, distance
from bnkit.keras import fixes
from bnkit.keras.evidence import Evidence, Norm
from bnkit.keras.folding import survey
from bnkit.keras.graph import Call, Graph, graphs_of, is_graph
from bnkit.keras.kernels import WEIGHT_LAYERS, features_axis
from bnkit.keras.roles import (
    AVERAGES,
    DROPOUTS,
    GLOBAL_AVERAGES,
    NORMALISATIONS,
    gives_answers,
    is_activation,
    is_batch_norm,
    own_activation,
)

_MAXIMA = (L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D)
_OF_PLACES = (  # what moves, drops or repeats places, and keeps the features on their axis
    *(L.Cropping1D, L.Cropping2D, L.Cropping3D),
    *(L.UpSampling1D, L.UpSampling2D, L.UpSampling3D),
    *(L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D),
)


def cancelled_bias(evidence: Evidence) -> Iterator[Finding]:
    """Find biases that a batch norm subtracts again with the mean of the mini-batch.

    Ioffe and Szegedy 2015, section 3.2.
    """
    for norm in _called_once(evidence):
        graph, call = norm.places[0]
        layer = _source(graph, call, _keeps_a_shift, alone=True)
        if not norm.trains or layer is None or not isinstance(layer.operation, WEIGHT_LAYERS):
            continue
        weights = layer.operation
        counted = evidence.times_called(weights) == 1 and own_activation(weights) is None
        if weights.use_bias and counted and _axis_of(norm, graph, call) == features_axis(weights):
            yield Finding(
                "cancelled-bias",
                "info",
                (layer.path, norm.path),
                {"parameters": math.prod(weights.bias.shape)},
                "The batch norm subtracts this bias again with the mean of the mini-batch, so it "
                "never trains and costs memory and time.",
                "Make the layer with use_bias=False; beta takes its part.",
                fixes.without_bias(layer.path, norm.path),
            )


def wrong_axis(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that normalise over another axis than that of the features."""
    for norm in _called_once(evidence):
        graph, call = norm.places[0]
        layer = _source(graph, call, _keeps_the_axes)
        if layer is None or not isinstance(layer.operation, WEIGHT_LAYERS):
            continue
        features, axis = features_axis(layer.operation), _axis_of(norm, graph, call)
        if features == axis:
            continue
        rank = len(graph.shapes[call.inputs[0]])
        yield Finding(
            "wrong-axis",
            "warning",
            (norm.path, layer.path),
            {"axis": rank + axis, "axis of the features": rank + features},
            f"{layer} has its features on axis {rank + features}, and the batch norm has its own "
            f"statistics for each place of axis {rank + axis} instead of each feature.",
            f"Make it BatchNormalization(axis={1 if features < -1 else -1}).",
        )


def on_logits(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms of a weight layer's output that is the answer of the model."""
    outer = evidence.graphs[0]
    for norm in _called_once(evidence):
        graph, call = norm.places[0]
        layer = _source(graph, call, lambda operation: isinstance(operation, DROPOUTS))
        after = graph.reader(call)
        last = after if after is not None and gives_answers(after.operation) else call
        leaves = graph is outer and last.outputs[0] in graph.outputs
        if leaves and layer is not None and isinstance(layer.operation, WEIGHT_LAYERS):
            yield Finding(
                "on-logits",
                "info" if len(graph.outputs) > 1 else "warning",
                (norm.path,),
                {"outputs of the model": len(graph.outputs)},
                "The batch norm is the last layer: it gives every output the same mean and spread "
                "over a mini-batch, whatever the classes in it.",
                "Leave the last layer without batch norm; in a trained model fold it away: "
                "bnkit.keras.fold(model).",
            )


def two_normalisations(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms of what another normalisation makes, with only dropouts between."""
    for norm in _called_once(evidence):
        graph, call = norm.places[0]
        first = _source(graph, call, lambda operation: isinstance(operation, DROPOUTS))
        if first is not None and isinstance(first.operation, NORMALISATIONS):
            yield Finding(
                "two-normalisations",
                "warning",
                (norm.path, first.path),
                {"reads": str(first)},
                "Two normalisations in a row: the second undoes scale and shift of the first, "
                "whose gamma and beta do not train, and the statistics are taken twice.",
                "Remove one of them.",
            )


def several_distributions(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that run several times in one forward, on inputs of other statistics."""
    for norm in evidence.norms:
        calls = max(len(norm.places), len(norm.reading.seen), _calls_of_holders(evidence, norm))
        if calls < 2 or not norm.trains:
            continue
        like, seen = _as_module(norm), norm.reading.seen
        apart = [distance(like, a.moments, b.moments) for a, b in combinations(seen, 2)]
        chance = max((by_chance(like, each) for each in seen), default=math.inf)
        differ = bool(apart) and max(apart) > 2 * chance
        of_data = {"standard deviations apart": max(apart), "by chance": chance} if apart else {}
        yield Finding(
            "several-distributions",
            "warning" if differ else "info",
            (norm.path,),
            {"calls in one forward": calls, **of_data},
            "This batch norm runs several times in one forward, and all calls share its moving "
            "statistics: where their inputs differ, inference normalises each by a mixture."
            + ("" if apart else " Give mini-batches to have the difference measured."),
            "Give each place a BatchNormalization of its own (weights may stay shared).",
        )


def training_false_overridden(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms called with training=False in the graph, which fit trains all the same."""
    for graph in evidence.graphs:
        for call in graph.calls:
            held = [n for n in evidence.norms if n.trains and _holds(call.operation, n.layer)]
            given = call.arguments.kwargs.get("training")
            if given is not None and not given and held:
                paths = tuple(norm.path for norm in held)
                yield Finding(
                    "training-false-overridden",
                    "warning",
                    paths,
                    {"called with training=False": call.path},
                    "In a Sequential or Functional model training=False holds until fit (or a call "
                    "with training=True): then these layers normalise by the mini-batch, and their "
                    "moving statistics move.",
                    "Freeze them by layer.trainable = False, then compile again.",
                    fixes.frozen(paths),
                )


def training_true_in_inference(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms called with training=True in the graph: batch statistics in inference."""
    for norm in evidence.norms:
        if norm.trains and any(c.arguments.kwargs.get("training") for _, c in norm.places):
            yield Finding(
                "training-true-in-inference",
                "warning",
                (norm.path,),
                {"training": True},
                "In inference it normalises by the mini-batch, too, so the answer for one example "
                "depends on the others, and every call moves the moving statistics.",
                "Call the layer without `training`: fit and predict set it.",
            )


def padding_in_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms into whose statistics the padding of sequences enters, without a mask."""
    for norm in evidence.norms:
        for seen in norm.reading.seen:
            if seen.unpadded is None or not seen.padding or not norm.trains:
                continue
            like = _as_module(norm)
            moved, chance = distance(like, seen.unpadded, seen.moments), by_chance(like, seen)
            yield Finding(
                "padding-in-statistics",
                "warning" if moved > chance else "info",
                (norm.path,),
                {
                    "share of padding": seen.padding / seen.moments.count,
                    "share of output moved": moved,
                    "by chance": chance,
                },
                "The ends of the sequences are padding, and no mask reaches the batch norm, so it "
                "enters mean and variance, which depend on the longest sequence.",
                "Let a mask reach it: Masking or Embedding(mask_zero=True) before, and no layer "
                "between that drops the mask, as convs do; or pass mask= in the call.",
            )


def unfolded(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that could be folded away in a model that is not compiled for training."""
    if evidence.model.compiled:
        return
    sound = {norm.path for norm in evidence.norms if _is_sound(norm)}
    paths = [edit.layer for edit in survey(evidence.model, lambda path, _: path in sound).edits]
    if paths:
        yield Finding(
            "unfolded",
            "info",
            tuple(paths),
            {"batch norms": len(paths), "of": len(evidence.norms)},
            "In inference these batch norms are affine maps that the weight layers beside them "
            "could do at no cost. Keras exports each as several operations, which no tool behind "
            "it folds.",
            "Before model.export, fold them: bnkit.keras.fold(model).",
        )


def _is_sound(norm: Norm) -> bool:
    held, variance = norm.reading.tensors, norm.reading.running_var
    finite = all(bool(values.isfinite().all()) for values in held.values())
    return finite and variance is not None and bool((variance + norm.reading.eps > 0).all())


def _called_once(evidence: Evidence) -> Iterator[Norm]:
    return (norm for norm in evidence.norms if len(norm.places) == 1)


def _source(
    graph: Graph, call: Call, passes: Callable[[Any], bool], *, alone: bool = False
) -> Call | None:
    """Return the call before `call` at which the operations that `passes` lets through begin.

    With `alone`, only if nothing else reads what is made between.
    """
    here = call
    while (before := graph.producer(here)) is not None:
        if alone and graph.reader(before) is not here:
            return None
        if not passes(before.operation):
            return before
        here = before
    return None


def _keeps_a_shift(operation: Any) -> bool:
    """Return whether a constant of a feature comes out as it went in, in training, too."""
    if isinstance(operation, AVERAGES):
        return bool(operation.padding == "valid")
    return isinstance(operation, (*_MAXIMA, *GLOBAL_AVERAGES, L.Identity))


def _keeps_the_axes(operation: Any) -> bool:
    alike = (*DROPOUTS, *_MAXIMA, *AVERAGES, *_OF_PLACES)
    return isinstance(operation, alike) or is_activation(operation) or is_batch_norm(operation)


def _axis_of(norm: Norm, graph: Graph, call: Call) -> int:
    """Return the axis of a batch norm, counted from the end."""
    axis = int(norm.layer.axis)
    return axis if axis < 0 else axis - len(graph.shapes[call.inputs[0]])


def _holds(operation: Any, layer: Any) -> bool:
    """Return whether an operation is this layer, or a model that holds it."""
    if operation is layer:
        return True
    inner = graphs_of(operation) if is_graph(operation) else ()
    return any(call.operation is layer for graph in inner for call in graph.calls)


def _calls_of_holders(evidence: Evidence, norm: Norm) -> int:
    """Return how often the model inside that holds a batch norm is called in one forward."""
    calls = [call for graph in evidence.graphs for call in graph.calls]
    held = [c for c in calls if is_graph(c.operation) and _holds(c.operation, norm.layer)]
    return max((evidence.times_called(call.operation) for call in held), default=1)


def _as_module(norm: Norm) -> Any:
    """Return what measures of distance read of a batch norm: its weight and its eps."""
    return SimpleNamespace(weight=norm.reading.weight, eps=norm.reading.eps)
