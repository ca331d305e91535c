"""`made`: the sides of a comparison of Keras models, each from the model as it was built."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import layers as L

from bnkit.experiments.sides import GROUPS, name_of
from bnkit.keras.folding import hosts_of_batch_norms
from bnkit.keras.rebuilding import Change, NewLayer, rebuilt
from bnkit.keras.roles import batch_norms_of
from bnkit.references import blaming
from bnkit.surgery import SurgeryError


def made(side: str | Callable[[Any], Any], plain: Any, twin: Callable[[], Any]) -> Any:
    """Return one side of a comparison, from a model without batch norm.

    `twin()` returns the model with batch norm, whose places the other norms take; they begin as new
    layers do. A function of the user's gets a copy of the plain model. Raises SurgeryError for
    ghost batch norm, which Keras does not have.
    """
    name = name_of(side)
    if callable(side):
        with blaming(f"the side {name!r} fails"):
            changed = side(rebuilt(plain, {}))
        if not isinstance(changed, keras.Model):
            raise TypeError(
                f"the side {name!r} returned a {type(changed).__name__}: it must return the model"
            )
        return changed
    if name == "plain":
        return plain
    return twin() if name == "batch norm" else with_other_norms(twin(), name)


def without_batch_norms(model: Any) -> Any:
    """Return a copy without batch norms whose layers have their biases back, newly drawn.

    A layer has one where a batch norm reads what it computes: the batch norm had taken its place.

    >>> model = keras.Sequential([keras.Input((4,)), L.Dense(8, use_bias=False, name="d"),
    ...                           L.BatchNormalization(), L.ReLU(name="r")])
    >>> [(layer.name, len(layer.weights)) for layer in without_batch_norms(model).layers]
    [('d', 2), ('r', 0)]
    """
    gone = {id(layer): Change(gone=True) for layer in batch_norms_of(model).values()}
    hosts = {id(layer): Change({"use_bias": True}) for layer in hosts_of_batch_norms(model)}
    return rebuilt(model, {**hosts, **gone})


def with_other_norms(model: Any, name: str) -> Any:
    """Return a copy of a model in which norms of this kind are in the places of batch norms.

    >>> model = keras.Sequential([keras.Input((4, 4, 48)), L.BatchNormalization(name="n")])
    >>> with_other_norms(model, "group norm").layers[0].groups
    16
    """
    if name == "ghost batch norm":
        raise SurgeryError("Keras has no ghost batch norm: choose group, layer or instance")
    changes = {}
    for path, layer in batch_norms_of(model).items():
        channels, axis = math.prod(layer.moving_mean.shape), layer.axis
        groups = {"group norm": math.gcd(GROUPS, channels), "layer norm": 1}.get(name, channels)
        if name == "instance norm" and len(layer.input.shape) == 2:
            raise SurgeryError(
                f"instance norm takes the mean of a channel over one sample, and of '{path}' a "
                f"sample has one value: choose 'group' or 'layer'"
            )
        config = {
            "groups": groups,
            "axis": axis,
            "epsilon": layer.epsilon,
            "dtype": keras.dtype_policies.serialize(layer.dtype_policy),
            "name": layer.name,
        }
        norm = NewLayer(L.GroupNormalization, config)
        changes[id(layer)] = Change(after=(norm,), gone=True)
    return rebuilt(model, changes)
