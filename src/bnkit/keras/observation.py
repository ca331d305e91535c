"""Layers of a Keras model that do something else when they are called, and are given back."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import torch

from bnkit.keras.kernels import Array, array_of

# Gets the layer's own `call`, its input, and the keyword arguments of the call.
Instead = Callable[[Callable[..., Any], Any, dict[str, Any]], Any]
Statistics = tuple[Array, Array]  # mean and biased variance, (C,)
# Gets a path, its input and mask; returns what the layer normalises by, None for its own.
See = Callable[[str, Any, Any], Statistics | None]


def infer(model: Any, inputs: Any) -> Any:
    """Return what a model makes of inputs in inference; the torch backend records no gradients."""
    with torch.no_grad():
        return model(inputs, training=False)


@contextmanager
def calling_instead(functions: Mapping[Any, Instead]) -> Iterator[None]:
    """Let layers call functions, by layer, while the block runs; afterwards all is as it was.

    Errors in the functions come out as they are raised: Keras adds no arguments to their text.

    >>> layer = keras.layers.ReLU()
    >>> with calling_instead({layer: lambda call, x, keywords: call(-x)}):
    ...     float(layer(keras.ops.array([-2.0]))[0])
    2.0
    >>> float(layer(keras.ops.array([-2.0]))[0])
    0.0
    """
    changed: list[tuple[Any, Any]] = []
    decorates = keras.config.is_traceback_filtering_enabled()
    try:
        keras.config.disable_traceback_filtering()
        for layer, function in functions.items():
            changed.append((layer, vars(layer).get("call")))
            layer.call = _calling(layer.call, function)  # on the instance, over that of the class
        yield
    finally:
        if decorates:
            keras.config.enable_traceback_filtering()
        for layer, own in reversed(changed):
            vars(layer).pop("call", None)
            if own is not None:
                layer.call = own


def normalising_by(layers: Mapping[str, Any], see: See) -> Any:
    """Let batch norms, by their paths, normalise by what `see` returns while the block runs.

    They run as in inference, and these statistics are written into them: pass those of a copy.

    >>> layer = keras.layers.BatchNormalization(epsilon=1e-12)
    >>> x = keras.ops.array([[1.0], [3.0]])
    >>> with normalising_by({"": layer}, lambda path, x, mask: ([2.0], [1.0])):
    ...     array_of(layer(x)).tolist()
    [[-1.0], [1.0]]
    """

    def instead_of(path: str, layer: Any) -> Instead:
        def instead(call: Any, x: Any, keywords: dict[str, Any]) -> Any:
            statistics = see(path, x, keywords.get("mask"))
            if statistics is not None:
                write_statistics(layer, statistics)
            return call(x, **{**keywords, "training": False})

        return instead

    return calling_instead({layer: instead_of(path, layer) for path, layer in layers.items()})


def statistics_of(layer: Any) -> Statistics:
    """Return the moving mean and variance of a batch norm, in float64.

    >>> layer = keras.layers.BatchNormalization()
    >>> layer.build((None, 1))
    >>> statistics_of(layer)
    (array([0.]), array([1.]))
    """
    return array_of(layer.moving_mean), array_of(layer.moving_variance)


def write_statistics(layer: Any, statistics: Statistics) -> None:
    """Write the mean and the biased variance, (C,) each, into a batch norm."""
    mean, variance = statistics
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)


def _calling(call: Callable[..., Any], function: Instead) -> Callable[..., Any]:
    def instead(x: Any, *arguments: Any, **keywords: Any) -> Any:
        assert not arguments  # Keras hands training and mask on by name
        return function(call, x, keywords)

    return instead
