"""What verbs cost: how many forwards each makes, and that these record no gradients."""

import keras
import numpy as np
import pytest
import torch
from keras import layers as L

import bnkit.keras as bnk

RAN = []


@keras.saving.register_keras_serializable("test_forwards")
class Counted(L.Layer):
    """Hands on what it gets, and notes that it ran."""

    def call(self, x):
        RAN.append((len(x), isinstance(x, torch.Tensor) and x.requires_grad))
        return x

    def compute_output_shape(self, shape):  # so that Keras need not call it on symbols
        return shape


def normalised():
    return keras.Sequential(
        [
            keras.Input((5,)),
            L.Dense(4, name="d"),
            Counted(),
            L.BatchNormalization(name="n"),
            L.ReLU(),
            L.Dense(3, use_bias=False),
            L.BatchNormalization(name="m"),
        ]
    )


def plain():
    return keras.Sequential(
        [keras.Input((5,)), L.Dense(4, activation="relu"), Counted(), L.Dense(2)]
    )


def rows(count):
    return np.random.default_rng(count).normal(size=(count, 5)).astype("float32")


BATCHES = [rows(8), rows(9), rows(10)]


@pytest.mark.parametrize(
    ("verb", "forwards"),
    [
        (lambda: bnk.add(plain()), 0),
        (lambda: bnk.insert(plain(), BATCHES), 3 + 3),
        (lambda: bnk.fold(normalised(), rows(8)), 3),
        (lambda: bnk.remove(normalised(), rows(8)), 3),
        (lambda: bnk.recalibrate(normalised(), BATCHES, progress=False), 3),
        (
            lambda: bnk.recalibrate(
                normalised(), BATCHES, estimator="layer_by_layer", progress=False
            ),
            2 * 3,
        ),
        (lambda: bnk.explain_gap(normalised(), rows(8)), 2),
        (lambda: bnk.diagnose(normalised(), BATCHES), 2 * 3),
        (lambda: bnk.diagnose(normalised()), 0),
    ],
    ids="add insert fold remove recalibrate layer_by_layer explain_gap diagnose static".split(),
)
def test_a_verb_makes_as_many_forwards_as_the_page_says(verb, forwards):
    RAN.clear()
    verb()
    assert len(RAN) == forwards
    assert not any(records for _, records in RAN)
