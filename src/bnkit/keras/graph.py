"""A Keras model as calls of operations: who feeds whom. The private names of Keras are here only.

Keras gives a graph no public name, though a Functional model is one. Last seen in Keras 3.15.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation, which is a layer, a nested model or one of keras.ops.

    A mask that comes with an input is none of `inputs`: Keras hands it on by itself.
    """

    operation: Any
    path: str
    arguments: Any = field(repr=False)
    inputs: tuple[int, ...]  # identities of the tensors that it reads
    outputs: tuple[int, ...]  # and of those that it makes

    @property
    def kind(self) -> str:
        """The name of the operation's class."""
        return type(self.operation).__name__

    def __str__(self) -> str:
        return f"'{self.path}' ({self.kind})"


@dataclass(frozen=True, eq=False)
class Graph:
    """The calls of one Sequential or Functional model, in the order in which they run.

    Models inside it are one call each; `graphs_of` gives their own graphs.
    """

    model: Any
    calls: tuple[Call, ...]
    outputs: frozenset[int]
    shapes: dict[int, tuple[int | None, ...]] = field(repr=False)
    producers: dict[int, Call] = field(repr=False)
    readers: dict[int, list[Call]] = field(repr=False)

    def reader(self, call: Call) -> Call | None:
        """Return the call that alone reads the one output of `call`, None where there is none."""
        if len(call.outputs) != 1 or call.outputs[0] in self.outputs:
            return None
        readers = self.readers.get(call.outputs[0], [])
        return readers[0] if len(readers) == 1 else None

    def producer(self, call: Call) -> Call | None:
        """Return the call that made the one input of `call`, None where there is none."""
        return self.producers.get(call.inputs[0]) if len(call.inputs) == 1 else None


def is_graph(model: Any) -> bool:
    """Return whether `model` is a Sequential or Functional model, of no class of its own.

    >>> is_graph(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))
    True
    """
    return type(model) is keras.Sequential or type(model) is _functional_class()


def check_graph(model: Any) -> None:
    """Raise with what to do unless `model` is a built Sequential or Functional model.

    TypeError for what is not a Keras model, ValueError for another kind of model.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` is a {type(model).__name__}: pass a Keras model")
    name = type(model).__name__
    if not is_graph(model):
        raise ValueError(
            f"`model` is of the class {name}, whose `call` is Python: make it Functional, by "
            f"bnkit.keras.as_functional(model, example)"
        )
    if _function_of(model) is None:
        raise ValueError(
            f"`model` ({name}) is not built, so its layers have no weights: begin it with a "
            f"keras.Input(shape), or call it on a batch"
        )
    patched = [layer for layer in layers_inside(model) if "call" in vars(layer)]
    if patched:
        raise ValueError(
            f"layer '{patched[0].name}' ({type(patched[0]).__name__}) has a `call` that was set on "
            f"it, which a copy would not have: make it a class of your own with this `call`"
        )


def graphs_of(model: Any, path: str = "") -> Iterator[Graph]:
    """Yield the graph of `model` and those of the models inside it, each once.

    >>> inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="d")],
    ...                          name="inner")
    >>> outer = keras.Sequential([keras.Input((2,)), inner])
    >>> [[call.path for call in graph.calls] for graph in graphs_of(outer)]
    [['inner'], ['inner/d']]
    """
    waiting, seen = [(model, path)], {id(model)}
    while waiting:
        model, path = waiting.pop(0)
        graph = _graph_of(model, path)
        yield graph
        for call in graph.calls:
            inner = call.operation
            if is_graph(inner) and id(inner) not in seen:
                seen.add(id(inner))
                waiting.append((inner, f"{call.path}/"))


def call_again(function: Any, call: Call, values: dict[int, Any]) -> list[Any]:
    """Call `function` with the arguments of `call`, in which `values` stand for its tensors.

    Returns its outputs in a flat list.
    """
    arguments, keywords = call.arguments.convert(
        lambda x: values.get(id(x)) if isinstance(x, keras.KerasTensor) else x
    )
    if _own_mask(call.arguments) is not None:
        del keywords["mask"]
    if keywords.get("training", True) is None:  # None counts as given, and would hold in fit
        del keywords["training"]
    return list(keras.tree.flatten(function(*arguments, **keywords)))


def inputs_of(model: Any) -> Any:
    """Return the inputs of a Sequential or Functional model, in the structure that it takes."""
    return _function_of(model)._inputs_struct  # noqa: SLF001  see the docstring of this file


def outputs_of(model: Any) -> Any:
    """Return the outputs of a Sequential or Functional model, in the structure that it gives."""
    return _function_of(model)._outputs_struct  # noqa: SLF001  as above


def input_layer_of(tensor: Any) -> Any:
    """Return the InputLayer that made a symbolic input, None where another operation did."""
    operation = tensor._keras_history.operation  # noqa: SLF001  as above
    return operation if isinstance(operation, keras.layers.InputLayer) else None


def layers_inside(layer: Any) -> list[Any]:
    """Return `layer` and all layers that it holds, at any depth, outermost first."""
    return list(layer._flatten_layers())  # noqa: SLF001  as above


def composites_in(model: Any) -> list[Any]:
    """Return the layers of the user's own classes that hold layers, `model` not among them."""
    return [
        layer
        for layer in layers_inside(model)
        if layer is not model and not is_graph(layer) and len(layers_inside(layer)) > 1
        if not type(layer).__module__.startswith("keras.")
    ]


@contextmanager
def unique_names(model: Any) -> Iterator[None]:
    """Let layers of one name carry those of their holders before it, while the block runs."""
    named = list(_with_holders(model, ()))
    times = Counter(layer.name for layer, _ in named)
    kept = [(layer, layer.name) for layer, _ in named]
    try:
        for layer, holders in named:
            if times[layer.name] > 1 and holders:
                layer.name = "_".join((*holders, layer.name))
        yield
    finally:
        for layer, name in kept:
            layer.name = name


def _with_holders(layer: Any, holders: tuple[str, ...]) -> Iterator[tuple[Any, tuple[str, ...]]]:
    for child in layer._flatten_layers(include_self=False, recursive=False):  # noqa: SLF001  see above
        yield child, holders
        if not is_graph(child):
            yield from _with_holders(child, (*holders, child.name))


@contextmanager
def keeping_nodes(model: Any) -> Iterator[None]:
    """Forget the calls of layers that were recorded in the block, when it ends.

    >>> dense = keras.layers.Dense(2)
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> with keeping_nodes(model):
    ...     _ = dense(keras.Input((2,)))
    >>> len(dense._inbound_nodes)
    1
    """
    layers = layers_inside(model)
    names = ("_inbound_nodes", "_outbound_nodes")
    counts = [(layer, name, len(getattr(layer, name))) for layer in layers for name in names]
    try:
        yield
    finally:
        for layer, name, count in counts:
            del getattr(layer, name)[count:]


def changed_since_compile(model: Any) -> list[Any]:
    """Return the layers of a compiled model whose trainable flag is not what it was then.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="d")])
    >>> model.compile()
    >>> model.layers[0].trainable = False
    >>> [layer.name for layer in changed_since_compile(model)]
    ['d']
    """
    flags = getattr(model, "_compiled_trainable_state", {}) if model.compiled else {}
    return [
        layer for layer in layers_inside(model) if flags.get(layer) not in (None, layer.trainable)
    ]


def compiled_with(model: Any) -> dict[str, Any]:
    """Return the arguments with which a model was compiled, by their names; {} if it was not.

    The optimizer is the model's own, be it wrapped for half precision.

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    >>> compiled_with(model)
    {}
    >>> model.compile(loss="mse")
    >>> compiled_with(model)["loss"]
    'mse'
    """
    if not model.compiled:
        return {}
    config = model._compile_config.config  # noqa: SLF001  see the docstring of this file
    return {**config, "optimizer": model.optimizer}


def is_decayed(optimizer: Any, variable: Any) -> bool:
    """Return whether a Keras optimizer decays this variable beside the gradient's step.

    >>> dense = keras.layers.Dense(1)
    >>> dense.build((None, 1))
    >>> optimizer = keras.optimizers.AdamW()
    >>> optimizer.exclude_from_weight_decay(var_names=["bias"])
    >>> [is_decayed(optimizer, variable) for variable in dense.weights]
    [True, False]
    """
    if not getattr(optimizer, "weight_decay", None):
        return False
    key = optimizer._var_key(variable)  # noqa: SLF001  see the docstring of this file
    excluded = getattr(optimizer, "_exclude_from_weight_decay", None) or set()
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    return key not in excluded and not (pattern and re.search(pattern, variable.name))


def _graph_of(model: Any, path: str) -> Graph:
    function = _function_of(model)
    nodes = function._nodes_by_depth  # noqa: SLF001  as above
    inputs = {id(tensor) for tensor in keras.tree.flatten(function.inputs)}
    made = [node for depth in sorted(nodes, reverse=True) for node in nodes[depth]]
    calls = _without_masks(
        [
            _call_of(node, path)
            for node in made
            if not inputs.issuperset(map(id, node.output_tensors))
        ],
        frozenset(map(id, function.outputs)),
    )
    readers: dict[int, list[Call]] = {}
    for call in calls:
        for tensor in call.inputs:
            readers.setdefault(tensor, []).append(call)
    producers = {tensor: call for call in calls for tensor in call.outputs}
    shapes = {id(tensor): tuple(tensor.shape) for node in made for tensor in node.output_tensors}
    return Graph(model, calls, frozenset(map(id, function.outputs)), shapes, producers, readers)


def _call_of(node: Any, path: str) -> Call:
    mask = _own_mask(node.arguments)
    return Call(
        node.operation,
        path + node.operation.name,
        node.arguments,
        tuple(id(tensor) for tensor in node.input_tensors if tensor is not mask),
        tuple(map(id, node.output_tensors)),
    )


def _own_mask(arguments: Any) -> Any:
    """Return the mask of a call that came with its input, None for none and for the user's own."""
    mask = arguments.kwargs.get("mask")
    first = arguments.args[0] if arguments.args else None
    of_input = keras.tree.map_structure(lambda x: getattr(x, "_keras_mask", None), first)
    return mask if isinstance(mask, keras.KerasTensor) and mask is of_input else None


def _without_masks(calls: list[Call], outputs: frozenset[int]) -> tuple[Call, ...]:
    """Return the calls without those of keras.ops by which Keras makes masks."""
    read, kept = set(outputs), list[Call]()
    for call in reversed(calls):
        if isinstance(call.operation, keras.Layer) or not read.isdisjoint(call.outputs):
            kept.append(call)
            read.update(call.inputs)
    return tuple(reversed(kept))


def _function_of(model: Any) -> Any:
    if isinstance(model, keras.Sequential):
        return model._functional  # noqa: SLF001  as above
    return model


@functools.cache
def _functional_class() -> type[Any]:
    inputs = keras.Input((1,))  # the class of Functional models has no public name
    return type(keras.Model(inputs, inputs))
