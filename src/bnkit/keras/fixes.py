"""The fixes of findings on Keras models: changes of layers by their paths, made on a copy."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnkit.keras.evidence import layers_of
from bnkit.keras.graph import graphs_of
from bnkit.keras.kernels import array_of
from bnkit.keras.rebuilding import Change, merged, rebuilt

Layers = Mapping[str, Any]
Changes = Iterable[tuple[int, Change]]


@dataclass(frozen=True)
class Step:
    """Changes of layers by their paths; `measures` says whether they write what was measured.

    Such steps come before those that change what a layer is given.
    """

    changes: Callable[[Layers], Changes]
    measures: bool = False


@dataclass(frozen=True)
class Fix:
    """A function from a model, the diagnosed one or one that others have fixed, to a fixed copy."""

    steps: tuple[Step, ...]

    def __call__(self, model: Any) -> Any:
        """Return a fixed copy of the model."""
        return fixed_by([self], model)


def fixed_by(fixes: Iterable[Fix], model: Any) -> Any:
    """Return a copy of the model with all of these fixes, each once.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(name="n")])
    >>> fixed_by([with_options("n", momentum=0.9)], model).layers[0].momentum
    0.9
    """
    steps = dict.fromkeys(step for fix in fixes for step in fix.steps)
    for measuring in (True, False):
        layers = layers_of(graphs_of(model))
        chosen = [step for step in steps if step.measures == measuring]
        model = rebuilt(model, merged(change for step in chosen for change in step.changes(layers)))
    return model


def in_turn(*fixes: Fix | None) -> Fix:
    """Return the fix that does what each of these does."""
    return Fix(tuple(step for fix in fixes if fix is not None for step in fix.steps))


def with_options(path: str, **options: Any) -> Fix:
    """Return the fix that makes a layer with other options."""
    return Fix((Step(lambda layers: [(id(layers[path]), Change(options))]),))


def frozen(paths: Iterable[str]) -> Fix:
    """Return the fix that sets trainable=False, by which batch norms stay in inference mode."""
    found = tuple(paths)
    return Fix((Step(lambda ls: [(id(ls[path]), Change(trainable=False)) for path in found]),))


def measured(path: str, mean: Any, variance: Any) -> Fix:
    """Return the fix that writes these moving statistics, (C,) each, the variance biased."""
    arrays = {"moving_mean": np.asarray(mean), "moving_variance": np.asarray(variance)}
    return Fix((Step(lambda layers: [(id(layers[path]), Change(arrays=arrays))], measures=True),))


def in_float32(path: str) -> Fix:
    """Return the fix by which a layer keeps float32 variables and computes in what it did."""

    def changes(layers: Layers) -> Iterator[tuple[int, Change]]:
        layer = layers[path]
        kind = layer.compute_dtype
        policy = f"mixed_{kind}" if kind in ("float16", "bfloat16") else "float32"
        yield id(layer), Change({"dtype": policy}, {w.name: array_of(w) for w in layer.weights})

    return Fix((Step(changes),))


def with_smaller_epsilon(path: str, epsilon: float) -> Fix:
    """Return the fix that sets an epsilon, and the gamma by which inference stays the same."""

    def changes(layers: Layers) -> Iterator[tuple[int, Change]]:
        layer = layers[path]
        variance = array_of(layer.moving_variance)
        ratio = np.sqrt((variance + epsilon) / (variance + layer.epsilon))
        yield id(layer), Change({"epsilon": epsilon}, {"gamma": array_of(layer.gamma) * ratio})

    return Fix((Step(changes),))


def without_bias(path: str, norm: str) -> Fix:
    """Return the fix that drops the bias of a layer, and the part of the mean that it made."""

    def changes(layers: Layers) -> Iterator[tuple[int, Change]]:
        layer, after = layers[path], layers[norm]
        mean = array_of(after.moving_mean) - array_of(layer.bias)
        yield id(layer), Change({"use_bias": False})
        yield id(after), Change(arrays={"moving_mean": mean})

    return Fix((Step(changes),))
