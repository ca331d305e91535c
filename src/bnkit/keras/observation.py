"""Layers of a Keras model that do something else when they are called, and are given back."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# Gets the layer's own `call`, its input, and the keyword arguments of the call.
Instead = Callable[[Callable[..., Any], Any, dict[str, Any]], Any]


@contextmanager
def calling_instead(functions: Mapping[Any, Instead]) -> Iterator[None]:
    """Let layers call functions, by layer, while the block runs; afterwards all is as it was.

    >>> import keras
    >>> layer = keras.layers.ReLU()
    >>> with calling_instead({layer: lambda call, x, keywords: call(-x)}):
    ...     float(layer(keras.ops.array([-2.0]))[0])
    2.0
    >>> float(layer(keras.ops.array([-2.0]))[0])
    0.0
    """
    changed: list[Any] = []
    try:
        for layer, function in functions.items():
            changed.append(layer)
            layer.call = _calling(layer.call, function)  # on the instance, over that of the class
        yield
    finally:
        for layer in changed:
            vars(layer).pop("call", None)


def _calling(call: Callable[..., Any], function: Instead) -> Callable[..., Any]:
    def instead(x: Any, *arguments: Any, **keywords: Any) -> Any:
        assert not arguments  # Keras hands training and mask on by name
        return function(call, x, keywords)

    return instead
