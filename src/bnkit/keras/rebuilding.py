"""Copies of Sequential and Functional models in which some layers are other ones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from bnkit.keras.graph import (
    Call,
    Graph,
    call_again,
    graphs_of,
    input_layer_of,
    inputs_of,
    is_graph,
    layers_inside,
    outputs_of,
)
from bnkit.keras.kernels import Arrays
from bnkit.observation import preserved_random_state


@dataclass(frozen=True, eq=False)
class NewLayer:
    """A layer that the copy has and the original has not: class, config, and first values."""

    kind: type[Any]
    config: Mapping[str, Any]
    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Change:
    """What becomes of one layer in the copy.

    `config` and `arrays` are what changes of its config and weights; `after` are layers behind it,
    the last of which its readers read; `gone` leaves the layer itself out; `trainable` is its flag
    where that changes.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)
    after: tuple[NewLayer, ...] = ()
    gone: bool = False
    trainable: bool | None = None


def merged(changes: Iterable[tuple[int, Change]]) -> dict[int, Change]:
    """Return one change for each layer, from all that are asked of it, in their order.

    >>> found = merged([(1, Change({"a": 1})), (1, Change({"b": 2}, gone=True))])
    >>> found[1].config, found[1].gone
    ({'a': 1, 'b': 2}, True)
    """
    found: dict[int, Change] = {}
    for key, new in changes:
        old = found.get(key, Change())
        found[key] = Change(
            {**old.config, **new.config},
            {**old.arrays, **new.arrays},
            (*old.after, *new.after),
            old.gone or new.gone,
            old.trainable if new.trainable is None else new.trainable,
        )
    return found


def rebuilt(model: Any, changes: Mapping[int, Change]) -> Any:
    """Return a copy of `model` with `changes`, by the identity of the layer that changes.

    It is of the same kind and nesting, with the same layer names, values (those of random seeds,
    too), trainable flags and dtype policies. `model` stays as it is: its graph is read, not called.
    So do the random generators, from which Keras draws when it makes layers.

    Raises ValueError for changes of layers that `model` does not have.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="first"),
    ...                           keras.layers.ReLU()])
    >>> [layer.name for layer in rebuilt(model, {id(model.layers[1]): Change(gone=True)}).layers]
    ['first']
    """
    graphs = list(graphs_of(model))
    if not changes.keys() <= {id(call.operation) for graph in graphs for call in graph.calls}:
        raise ValueError(
            f"`model` ({model.name}) is not the model that was planned for, whose layers the plan "
            f"changes: make a plan for this one"
        )
    copying = _Copying({id(graph.model): graph for graph in graphs}, changes)
    with preserved_random_state():
        copy = copying.model(model)
    # The flag of a model sets those of all its layers, so it is set before theirs.
    for original, made in copying.pairs:
        _take_over(original, made, changes.get(id(original)))
    return copy


@dataclass(eq=False)
class _Copying:
    graphs: Mapping[int, Graph]
    changes: Mapping[int, Change]
    made: dict[int, Any] = field(default_factory=dict)  # copies, by the identity of the original
    pairs: list[tuple[Any, Any]] = field(default_factory=list)  # outermost first

    def model(self, model: Any) -> Any:
        graph = self.graphs[id(model)]
        place = len(self.pairs)
        copy = (self._sequential if type(model) is keras.Sequential else self._functional)(graph)
        self.pairs.insert(place, (model, copy))
        return copy

    def _sequential(self, graph: Graph) -> Any:
        (tensor,) = keras.tree.flatten(inputs_of(graph.model))
        layers = [_copy_of_input(tensor)]
        for call in graph.calls:
            own, after = self._layers(call)
            layers += [*own, *after]
        return keras.Sequential(layers, name=graph.model.name)

    def _functional(self, graph: Graph) -> Any:
        inputs = {id(t): _copy_of_input(t) for t in keras.tree.flatten(inputs_of(graph.model))}
        values = dict(inputs)
        for call in graph.calls:
            own, after = self._layers(call)
            results = call_again(own[0], call, values) if own else [values[call.inputs[0]]]
            for layer in after:
                results = [layer(results[0])]
            values.update(zip(call.outputs, results, strict=True))
        return keras.Model(
            keras.tree.map_structure(lambda t: inputs[id(t)], inputs_of(graph.model)),
            keras.tree.map_structure(lambda t: values[id(t)], outputs_of(graph.model)),
            name=graph.model.name,
        )

    def _layers(self, call: Call) -> tuple[list[Any], list[Any]]:
        """Return the copy of the operation of `call`, if it stays, and what is new behind it."""
        change = self.changes.get(id(call.operation), Change())
        own = [] if change.gone else [self._operation(call.operation, change)]
        return own, [self._new_layer(new) for new in change.after]

    def _operation(self, operation: Any, change: Change) -> Any:
        if id(operation) not in self.made:  # a shared layer stays shared
            if is_graph(operation):
                self.made[id(operation)] = self.model(operation)
            else:
                config = {**operation.get_config(), **change.config}
                self.made[id(operation)] = type(operation).from_config(config)
                self.pairs.append((operation, self.made[id(operation)]))
        return self.made[id(operation)]

    def _new_layer(self, new: NewLayer) -> Any:
        layer = new.kind(**new.config)
        self.pairs.append((new, layer))
        return layer


def _copy_of_input(tensor: Any) -> Any:
    layer = input_layer_of(tensor)
    if layer is None:
        return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)
    return type(layer).from_config(layer.get_config()).output


def _take_over(original: Any, made: Any, change: Change | None) -> None:
    """Give a copy the values and the trainable flags of its original, then what changes."""
    if isinstance(original, NewLayer):
        made.trainable = original.config.get("trainable", True)
        _assign(made, original.arrays)
        return
    if not isinstance(original, keras.Layer):
        return
    if is_graph(original):
        made.trainable = original.trainable
        return
    for ours, copy in zip(layers_inside(original), layers_inside(made), strict=True):
        copy.trainable = ours.trainable
    if change is None or not change.config:
        same = len(original.variables) == len(made.variables)
        # A Dropout whose rate is 0 now makes a copy without the state of a seed.
        kind = "variables" if same else "weights"
        olds, news = getattr(original, kind), getattr(made, kind)
        if len(olds) != len(news):
            raise ValueError(
                f"'{original.name}' ({type(original).__name__}) cannot be copied: its config makes "
                f"a layer of {len(news)} {kind}, and it has {len(olds)}"
            )
        for old, new in zip(olds, news, strict=True):
            new.assign(old)
    else:
        kept = {weight.name: weight for weight in original.weights}
        _assign(made, {w.name: kept[w.name] for w in made.weights if w.name in kept})
    if change is not None:
        _assign(made, change.arrays)
        if change.trainable is not None:
            made.trainable = change.trainable


def _assign(layer: Any, arrays: Mapping[str, Any]) -> None:
    for weight in layer.weights:
        if weight.name in arrays:
            weight.assign(keras.ops.cast(arrays[weight.name], weight.dtype))
