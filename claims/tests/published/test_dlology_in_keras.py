"""The post's network in Keras: with batch norm as published, and the plain one that it leaves."""

import math

import pytest

keras = pytest.importorskip("keras")

from bnkit.keras.sides import without_batch_norms  # noqa: E402  it needs Keras
from bnkit_claims.published.dlology_in_keras import EXPERIMENTS, post_network  # noqa: E402  as above


def test_both_sides_are_those_of_the_post():
    model = post_network(0.01, "sigmoid")
    plain = without_batch_norms(model)
    assert sum(math.prod(weight.shape) for weight in plain.trainable_weights) == 93_322
    names = [type(layer).__name__ for layer in model.layers]
    assert names.count("BatchNormalization") == 5
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert model.layers[-1].activation is keras.activations.softmax


def test_its_three_settings_are_listed():
    told = [(each.name, each.run.learning_rate, each.run.activation) for each in EXPERIMENTS]
    assert told == [
        ("keras-dlology-1", 0.001, "sigmoid"),
        ("keras-dlology-2", 0.01, "sigmoid"),
        ("keras-dlology-3", 0.01, "relu"),
    ]
