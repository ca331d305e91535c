"""Keras models for the tests, and what shows that one stayed as it was."""

import random

import keras
import numpy as np
import torch
from keras import layers as L

from bnkit.keras.kernels import array_of

IMAGES = (12, 12, 3)


def alive(model, seed=0):
    """Give the batch norms values that a trained model might have, in place."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, L.BatchNormalization):
            for weight in layer.weights:
                sign = -1 if weight.name in ("beta", "moving_mean") and rng.random() < 0.5 else 1
                weight.assign(sign * rng.uniform(0.5, 1.5, weight.shape))
        for weight in layer.weights:
            if weight.name == "bias":
                weight.assign(rng.normal(size=weight.shape))
    return model


def sequential():
    return alive(
        keras.Sequential(
            [
                keras.Input((8,)),
                L.Dense(6, use_bias=False, name="first"),
                L.BatchNormalization(name="norm"),
                L.ReLU(name="relu"),
                L.Dropout(0.5, name="dropout"),
                L.Dense(3, name="last"),
            ],
            name="plain",
        )
    )


def nested(dropout=0.2):
    """A Functional model with a branch, a sum, keras.ops, a frozen batch norm, a model inside."""
    inner = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            L.Conv2D(8, 1, groups=2, name="grouped"),
            L.BatchNormalization(trainable=False, name="frozen"),
            L.ReLU(name="relu"),
            L.BatchNormalization(name="before"),
            L.SeparableConv2D(6, 3, depth_multiplier=2, name="separable"),
            L.BatchNormalization(name="after"),
            L.Conv2DTranspose(4, 3, name="transposed"),
            L.BatchNormalization(name="behind"),
        ],
        name="inner",
    )
    inputs = keras.Input(IMAGES, name="images")
    h = L.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="conv")(inputs)
    h = L.BatchNormalization(name="norm")(h)
    h = L.SpatialDropout2D(dropout, name="dropout")(L.ReLU(name="active")(h))
    h = keras.ops.relu(inner(h)) + h * 0.5
    h = L.BatchNormalization(name="late")(h)
    h = L.GlobalAveragePooling2D(name="pool")(h)
    return alive(keras.Model(inputs, L.Dense(3, name="head")(h), name="nested"))


def images(rows=16, seed=1):
    return np.random.default_rng(seed).normal(size=(rows, *IMAGES)).astype("float32")


def state(model):
    """Return all that a verb must leave as it was: values, flags, graph, compilation, randomness.

    Keras takes the seeds of new layers from Python's generator.
    """
    layers = list(model._flatten_layers())
    return (
        [(v.path, array_of(v).tobytes()) for v in model.variables],
        [(layer.name, layer.trainable, "call" in vars(layer)) for layer in layers],
        [(layer.name, len(layer._inbound_nodes)) for layer in layers],
        model.compiled,
        getattr(model, "optimizer", None),
        random.getstate(),
    )


def error(first, second):
    """Return max|a − b| / max|a| over the outputs of two models."""
    pairs = zip(keras.tree.flatten(first), keras.tree.flatten(second), strict=True)
    return max(
        float(np.abs(array_of(a) - array_of(b)).max() / np.abs(array_of(a)).max()) for a, b in pairs
    )


def names(model):
    return [layer.name for layer in model.layers]


def as_torch(values):
    return torch.from_numpy(np.asarray(values, dtype=np.float64))
