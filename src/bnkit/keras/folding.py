"""`fold` and `remove`: batch norms of a Keras model taken into the layers beside them."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import keras
import numpy as np
from keras import layers as L

from bnkit.keras.graph import Call, Graph, check_graph, graphs_of
from bnkit.keras.kernels import (
    WEIGHT_LAYERS,
    Affine,
    Array,
    Arrays,
    affine_of,
    after_layer,
    array_of,
    arrays_of,
    before_layer,
    features_axis,
    is_exact_before,
)
from bnkit.keras.plan import Edit, Plan, left
from bnkit.keras.rebuilding import Change, NewLayer
from bnkit.keras.roles import (
    is_batch_norm,
    moves_features,
    moves_values_only,
    objection_to_class,
    objection_to_new_values,
    own_activation,
)
from bnkit.keras.verification import Pair, example_of, prove_same_function
from bnkit.norms import NOT_CHOSEN
from bnkit.surgery import SurgeryError

Where = Callable[[str, Any], bool]
_ANY_SIZE = 64  # that no pooling makes less than one place of


def fold(
    model: Any, example: Any = None, *, where: Where | None = None, tolerance: float | None = None
) -> Any:
    """Return a copy of a Keras `model` whose batch norms are folded into dense and conv layers.

    In inference a batch norm is one multiplication and one addition a value, which the layer before
    it takes into its kernel and bias, or the layer after it where that is exact. The copy is a
    Sequential or Functional model as `model` is, of plain Keras layers with the same names, is not
    compiled, and computes the same in inference. `model` stays as it is.

    `example` is what the model is called with (None: random numbers of its inputs' shapes).
    `where(path, layer)` chooses among the batch norms. Each pair is proven by itself in float64 (at
    most 1e-10), the whole model in its own dtype: the error max|a − b| / max|a| is at most
    `tolerance`, by default 1e-4, or ten times what the model moves when each input changes by one
    unit in the last place, where that is more.

    Raises TypeError and ValueError for a model that is not Sequential or Functional or not built,
    SurgeryError where nothing can be folded and where the copy computes something else.

    >>> model = keras.Sequential([keras.Input((8,)), L.Dense(4), L.BatchNormalization(), L.ReLU()])
    >>> [type(layer).__name__ for layer in fold(model).layers]
    ['Dense', 'ReLU']
    """
    plan = plan_folding(model, example, where=where, tolerance=tolerance)
    if not plan.edits:
        raise SurgeryError(_nothing_to("fold", plan))
    return plan.apply(model)


def remove(
    model: Any, example: Any = None, *, where: Where | None = None, tolerance: float | None = None
) -> Any:
    """Return a copy of a Keras `model` without its batch norms, which computes the same.

    As `fold`, and a batch norm that no layer can take in becomes an EinsumDense that multiplies and
    adds one value for each feature, trainable as the batch norm was.

    >>> model = keras.Sequential([keras.Input((8,)), L.BatchNormalization(), L.ReLU()])
    >>> [type(layer).__name__ for layer in remove(model).layers]
    ['EinsumDense', 'ReLU']
    """
    plan = plan_removal(model, example, where=where, tolerance=tolerance)
    if not plan.edits:
        raise SurgeryError(_nothing_to("remove", plan))
    return plan.apply(model)


def plan_folding(
    model: Any, example: Any = None, *, where: Where | None = None, tolerance: float | None = None
) -> Plan:
    """Return what `fold` would do to each batch norm, and why it leaves others, with the proof.

    >>> model = keras.Sequential([keras.Input((8,)), L.Dense(4, name="dense"),
    ...                           L.BatchNormalization(name="bn"), L.ReLU()])
    >>> print(plan_folding(model))  # doctest: +ELLIPSIS
     layer   kind                 change                      why
    ──────────────────────────────────────────────────────────────────────────────
     bn      BatchNormalization   fold into 'dense' (Dense)   the layer before it
    Same function: error ...
    """
    return _planned(model, example, where, tolerance, _Folding.fold)


def plan_removal(
    model: Any, example: Any = None, *, where: Where | None = None, tolerance: float | None = None
) -> Plan:
    """Return what `remove` would do to each batch norm, and why it leaves others, with the proof.

    >>> model = keras.Sequential([keras.Input((8,)), L.BatchNormalization(name="bn"), L.ReLU()])
    >>> plan_removal(model).edits[0].action
    'multiply and add by an EinsumDense'
    """
    return _planned(model, example, where, tolerance, _Folding.remove)


def survey(model: Any, where: Where | None = None) -> Plan:
    """Return what `fold` would do, unproven: nothing is run.

    >>> model = keras.Sequential([keras.Input((2,)), L.Dense(2), L.BatchNormalization()])
    >>> survey(model).edits[0].why
    'the layer before it'
    """
    return _surveyed(model, where, _Folding.fold)[0]


def hosts_of_batch_norms(model: Any) -> list[Any]:
    """Return the layers without a bias whose output a batch norm reads, which it would cancel.

    >>> model = keras.Sequential([keras.Input((2,)), L.Dense(2, use_bias=False, name="d"),
    ...                           L.BatchNormalization()])
    >>> [layer.name for layer in hosts_of_batch_norms(model)]
    ['d']
    """
    _, pairs = _surveyed(model, None, _Folding.fold)
    layers = [pair.call.operation for pair in pairs if pair.norm == "after"]
    return [layer for layer in layers if not layer.use_bias]


def _planned(
    model: Any,
    example: Any,
    where: Where | None,
    tolerance: float | None,
    treat: Callable[["_Folding", Graph, Call], Edit | str],
) -> Plan:
    plan, pairs = _surveyed(model, where, treat)
    if not plan.edits:
        return plan
    example = example_of(model, example)
    proof = prove_same_function(model, plan.apply(model), example, pairs, tolerance=tolerance)
    return dataclasses.replace(plan, proof=proof)


def _surveyed(
    model: Any, where: Where | None, treat: Callable[["_Folding", Graph, Call], Edit | str]
) -> tuple[Plan, list[Pair]]:
    check_graph(model)
    graphs = list(graphs_of(model))
    folding = _Folding(Counter(id(c.operation) for graph in graphs for c in graph.calls))
    found = [
        (call, treat(folding, graph, call) if chosen else NOT_CHOSEN)
        for graph in graphs
        for call in graph.calls
        if is_batch_norm(call.operation)
        for chosen in [where is None or where(call.path, call.operation)]
    ]
    edits = tuple(edit for _, edit in found if isinstance(edit, Edit))
    alone = tuple(left(call, why) for call, why in found if isinstance(why, str))
    return Plan(edits, alone, folding.changes), folding.pairs


@dataclass(eq=False)
class _Folding:
    """What the batch norms so far have done to the layers, and the pairs to be proven."""

    times_called: Counter[int]
    changes: dict[int, Change] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)

    def fold(self, graph: Graph, norm: Call) -> Edit | str:
        """Fold one batch norm, or return why it stays."""
        objection = self._objection_to_norm(norm)
        if objection is not None:
            return objection
        affine = affine_of(norm.operation)
        axis = _axis(norm.operation, graph.shapes[norm.inputs[0]])
        before = self._layer(graph, norm, axis, graph.producer)
        if isinstance(before, _Beside):
            return self._take(norm, before.call, before.seen(affine), "before", after_layer)
        after = self._layer(graph, norm, axis, graph.reader)
        if isinstance(after, _Beside):
            if is_exact_before(after.call.operation, affine):
                return self._take(norm, after.call, after.seen(affine), "after", before_layer)
            after = f"{after.call} pads its input with zeros, which the batch norm would shift"
        return f"before it: {before}; after it: {after}"

    def remove(self, graph: Graph, norm: Call) -> Edit | str:
        """Fold one batch norm, or put an EinsumDense instead of it, or return why it stays."""
        folded = self.fold(graph, norm)
        if isinstance(folded, Edit) or self._objection_to_norm(norm) is not None:
            return folded
        layer, shape = norm.operation, graph.shapes[norm.inputs[0]]
        letters = "abcdefgh"[: len(shape)]
        feature = letters[_axis(layer, shape)]
        affine = affine_of(layer)
        config = {
            "equation": f"{letters},{feature}->{letters}",
            "output_shape": shape[1:],
            "bias_axes": feature,
            "name": layer.name,
            "dtype": keras.dtype_policies.serialize(layer.dtype_policy),
            "trainable": layer.trainable,
        }
        trailing = (1,) * (len(shape) - 1 - letters.index(feature))
        arrays = {"kernel": affine.scale, "bias": affine.shift.reshape(-1, *trailing)}
        replacement = NewLayer(L.EinsumDense, config, arrays)
        self.changes[id(layer)] = Change(after=(replacement,), gone=True)
        return Edit(norm.path, norm.kind, "multiply and add by an EinsumDense", folded)

    def _objection_to_norm(self, norm: Call) -> str | None:
        layer = norm.operation
        if self.times_called[id(layer)] > 1:
            return f"called {self.times_called[id(layer)]} times in one forward"
        if norm.arguments.kwargs.get("training"):
            return "called with training=True, it normalises by the mini-batch in inference, too"
        if len(norm.inputs) > 1:
            return "it is called with a mask as a tensor of the graph"
        return objection_to_class(layer)

    def _layer(
        self, graph: Graph, norm: Call, axis: int, step: Callable[[Call], Call | None]
    ) -> "_Beside | str":
        """Return the weight layer that `step` after `step` from `norm` leads to, or why none."""
        backwards = step == graph.producer
        here, between = norm, list[Call]()
        while True:
            there = step(here)
            if there is None:
                return f"{here} {'reads no single layer' if backwards else 'has no single reader'}"
            first = there if backwards else here
            if backwards and graph.reader(first) is not here:
                return f"{there} has other readers too"
            operation = there.operation
            if isinstance(operation, WEIGHT_LAYERS):
                objection = self._objection_to_layer(there, backwards=backwards)
                if objection is not None:
                    return objection
                ends = (there, norm) if backwards else (norm, there)
                channels = _channels(graph, ends, between[::-1] if backwards else between, axis)
                return channels if isinstance(channels, str) else _Beside(there, channels)
            if not moves_values_only(operation) and not moves_features(operation):
                return f"{there} stands between it and a weight layer"
            between.append(there)
            here = there

    def _objection_to_layer(self, call: Call, *, backwards: bool) -> str | None:
        layer = call.operation
        if self.times_called[id(layer)] > 1:
            return f"{call} is called {self.times_called[id(layer)]} times in one forward"
        if backwards and own_activation(layer) is not None:
            return f"{call} ends in the activation {own_activation(layer)}"
        objection = objection_to_new_values(layer)
        return None if objection is None else f"{call}: {objection}"

    def _take(
        self,
        norm: Call,
        layer: Call,
        affine: Affine,
        place: str,
        algebra: Callable[[Any, Arrays, Affine], Arrays],
    ) -> Edit:
        old = (
            self.changes[id(layer.operation)].arrays if id(layer.operation) in self.changes else {}
        )
        values = {**arrays_of(layer.operation), **old}
        new = algebra(layer.operation, values, affine)
        self.changes[id(layer.operation)] = Change({"use_bias": True}, new)
        self.changes[id(norm.operation)] = Change(gone=True)
        side: Literal["before", "after"] = "after" if place == "before" else "before"
        axis = features_axis(layer.operation)
        self.pairs.append(Pair(layer, affine, values, new, side, axis))  # seen from the layer
        return Edit(norm.path, norm.kind, f"fold into {layer}", f"the layer {place} it")


def _axis(norm: Any, shape: tuple[int | None, ...]) -> int:
    """Return the axis of the features of a batch norm, counted from the end."""
    axis = int(norm.axis)
    return axis if axis < 0 else axis - len(shape)


@dataclass(frozen=True, eq=False)
class _Beside:
    """A weight layer beside a batch norm, and for each of its features the channel of that."""

    call: Call
    channels: Array

    def seen(self, affine: Affine) -> Affine:
        """Return the map of the batch norm, for each feature of the layer."""
        return Affine(affine.scale[self.channels], affine.shift[self.channels])


def _channels(
    graph: Graph, ends: tuple[Call, Call], between: Sequence[Call], axis: int
) -> Array | str:
    """Return the channel of the batch norm in which each feature of the layer lies, or why none.

    `ends` are the batch norm and the layer, in the order of the graph, and `axis` that of the batch
    norm. Numbers of features go through what is between, as their values do: it only moves them,
    or takes means of those of one feature.
    """
    first, last = ends
    starts_at_norm = is_batch_norm(first.operation)
    layer = last if starts_at_norm else first
    of_layer = features_axis(layer.operation)
    shape = graph.shapes[first.outputs[0]]
    start, end = (axis, of_layer) if starts_at_norm else (of_layer, axis)
    elsewhere = f"{layer} has its features on another axis than the batch norm"
    if not between:
        return np.arange(int(shape[start] or 0)) if start == end else elsewhere
    if not any(moves_features(call.operation) for call in between):
        shape = tuple(size or _ANY_SIZE for size in shape)  # of images; it makes no difference
    if None in shape[1:]:
        return f"{first} makes values of unknown size, which {between[0]} moves"
    sizes = [1, *(size for size in shape[1:] if size is not None)]
    numbers = np.arange(sizes[start]).reshape(-1, *(1,) * (-1 - start))
    found = _gone_through(between, np.broadcast_to(numbers, sizes), end)
    squares = _gone_through(between, np.broadcast_to(numbers**2, sizes), end)
    # The mean of the squares is the square of the mean where all are the same.
    if not np.allclose(squares, found**2, rtol=1e-5, atol=1e-3):
        return elsewhere
    ends_in = found.round().astype(int)  # (places, features at the end)
    if starts_at_norm:
        return elsewhere if (ends_in != ends_in[:1]).any() else ends_in[0]
    channels = np.zeros(sizes[start], dtype=int)
    channels[ends_in] = np.arange(ends_in.shape[1])
    return channels if (channels[ends_in] == np.arange(ends_in.shape[1])).all() else elsewhere


def _gone_through(between: Sequence[Call], numbers: Array, end: int) -> Array:
    """Return what these calls make of the numbers, as (places, features on the axis `end`)."""
    values: Any = keras.ops.convert_to_tensor(np.ascontiguousarray(numbers, dtype="float32"))
    for call in between:
        values = call.operation.call(values)  # not in a lower precision
    return np.moveaxis(array_of(values), end, -1).reshape(-1, values.shape[end])


def _nothing_to(verb: str, plan: Plan) -> str:
    reasons = [f"{alone.layer}: {alone.why}" for alone in plan.left_alone]
    if not reasons:
        return f"there is nothing to {verb}: the model has no BatchNormalization"
    return f"there is nothing to {verb}: {'; '.join(reasons[:8])}"
