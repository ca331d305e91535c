"""`as_functional`: a subclassed Keras model as a Functional one of the same layers and values."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from bnkit.keras.graph import composites_in, graphs_of, keeping_nodes, unique_names
from bnkit.keras.kernels import array_of
from bnkit.keras.rebuilding import rebuilt
from bnkit.keras.roles import is_batch_norm
from bnkit.surgery import SurgeryError


def as_functional(model: Any, example: Any) -> Any:
    """Return a Functional model that computes what a subclassed Keras `model` does.

    `model` is called symbolically on inputs like those of `example` (an array, or a tuple of
    several arguments), by `model.call`; layers of your own that hold layers are inlined. What comes
    back has copies of the plain layers and their values, so that all verbs take it. Where two have
    the same name, that of the layer that holds them stands before it. `model` stays as it is.

    Raises TypeError for what is not a Keras model, and SurgeryError, with what to do, where `call`
    cannot be followed, where a batch norm is called with training=False (in a Functional model it
    would not hold), and where the result differs on `example`.

    >>> class Net(keras.Model):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.dense = keras.layers.Dense(2, name="dense")
    ...     def call(self, x):
    ...         return keras.ops.relu(self.dense(x))
    >>> functional = as_functional(Net(), np.zeros((1, 3)))
    >>> [type(operation).__name__ for operation in functional.operations]
    ['InputLayer', 'Dense', 'Relu']
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` is a {type(model).__name__}: pass a Keras model")
    arguments = example if isinstance(example, tuple) else (example,)
    wanted = model(*arguments, training=False) if _takes_training(model) else model(*arguments)
    inputs = keras.tree.map_structure(_input_like, arguments)
    with keeping_nodes(model), unique_names(model), _inlined(model):
        traced = _traced(model, inputs, training=None)
        _refuse_frozen_calls(_traced(model, inputs, training=True))
        functional = rebuilt(traced, {})
    got = functional(arguments[0] if len(arguments) == 1 else list(arguments), training=False)
    for a, b in zip(keras.tree.flatten(wanted), keras.tree.flatten(got), strict=True):
        if not np.array_equal(array_of(a), array_of(b), equal_nan=True):
            raise SurgeryError(
                f"{type(model).__name__}.call does something that its layers and keras.ops do not "
                f"show: the Functional model differs on `example`"
            )
    return functional


def _traced(model: Any, inputs: tuple[Any, ...], *, training: bool | None) -> Any:
    given = {"training": training} if _takes_training(model) else {}
    try:
        outputs = model.call(*inputs, **given)
    except Exception as error:
        first = str(error).strip().partition("\n")[0][:200]
        raise SurgeryError(
            f"{type(model).__name__}.call cannot be followed on symbolic inputs "
            f"({type(error).__name__}: {first}): use layers and keras.ops in it, and no values of "
            f"tensors in conditions"
        ) from error
    return keras.Model(inputs[0] if len(inputs) == 1 else list(inputs), outputs, name=model.name)


def _refuse_frozen_calls(traced: Any) -> None:
    for graph in graphs_of(traced):
        for call in graph.calls:
            given = call.arguments.kwargs.get("training")
            if is_batch_norm(call.operation) and given is False:
                raise SurgeryError(
                    f"{call} is called with training=False, which a Functional model gives up in "
                    f"fit: set its trainable to False instead"
                )


def _input_like(values: Any) -> Any:
    return keras.Input(tuple(values.shape[1:]), dtype=keras.backend.standardize_dtype(values.dtype))


def _takes_training(model: Any) -> bool:
    return "training" in inspect.signature(model.call).parameters


@contextmanager
def _inlined(model: Any) -> Iterator[None]:
    """Let layers of the user's own that hold layers run their `call` in the graph around them."""
    kinds = {type(layer) for layer in composites_in(model)}
    kept = {kind: vars(kind).get("__call__") for kind in kinds}
    try:
        for kind in kinds:
            kind.__call__ = lambda self, *arguments, **keywords: self.call(*arguments, **keywords)
        yield
    finally:
        for kind, own in kept.items():
            if own is None:
                del kind.__call__
            else:
                kind.__call__ = own
