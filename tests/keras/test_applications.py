"""Networks of keras.applications with random weights, through the verbs."""

import os

import keras
import numpy as np
import pytest
from keras import layers as L

import bnkit.keras as bnk
from keras_models import alive, error, state

SMALL = {
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {"minimalistic": True, "include_preprocessing": False},
}
LARGE = {
    "DenseNet121": {},
    "EfficientNetB0": {},
    "EfficientNetV2B0": {},
    "ResNet50": {},
    "ResNet50V2": {},
    "VGG16": {},
    "Xception": {"input_shape": (71, 71, 3)},
    "InceptionV3": {"input_shape": (75, 75, 3)},
}
STAY = {"DenseNet121": 62, "ResNet50V2": 17, "VGG16": 0}  # between a sum and a ReLU
CHOSEN = SMALL | (LARGE if "BNKIT_FUZZ_KERAS" in os.environ else {})


def norms(model):
    return sum(isinstance(layer, L.BatchNormalization) for layer in model._flatten_layers())


@pytest.mark.parametrize(("name", "options"), CHOSEN.items(), ids=CHOSEN)
def test_a_public_network_is_recalibrated_folded_and_inserted_into(name, options):
    shape = options.get("input_shape", (32, 32, 3))
    given = {**options, "input_shape": shape, "weights": None, "classes": 10}
    model = alive(getattr(keras.applications, name)(**given))
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype("float32")
    before = state(model)
    small = model
    if norms(model):
        model = bnk.recalibrate(model, [x[:4], x[4:]], progress=False)
        before = state(model)
        plan = bnk.plan_folding(model, x)
        small = plan.apply(model)
        assert norms(small) == STAY.get(name, 0)
        assert plan.proof.error_in_float64 < 1e-13
        assert norms(bnk.remove(model, x)) == 0
    adds = bnk.plan_addition(small).edits
    inserted = bnk.insert(small, x)
    assert norms(inserted) == norms(small) + len(adds)
    assert error(small(x), inserted(x)) < 1e-3
    assert state(model) == before
