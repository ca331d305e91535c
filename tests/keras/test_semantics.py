"""What Keras does around batch norm, one assertion a fact: when Keras changes, this tells."""

import keras
import numpy as np
import pytest
import torch
from keras import layers as L

from bnkit.keras.kernels import array_of


def norm(**options):
    layer = L.BatchNormalization(momentum=0.5, **options)
    layer.build((None, 1))
    return layer


def column(*values):
    return np.array([[v] for v in values], dtype="float32")


def test_defaults():
    layer = L.BatchNormalization()
    assert (layer.momentum, layer.epsilon, layer.axis) == (0.99, 1e-3, -1)


def test_the_order_of_the_weights():
    assert [w.name for w in norm().weights] == ["gamma", "beta", "moving_mean", "moving_variance"]


def test_momentum_is_the_kept_share_and_the_moving_variance_is_biased():
    layer = norm()
    layer(column(1, 2, 3, 4), training=True)
    assert array_of(layer.moving_mean).item() == pytest.approx(0.5 * 0 + 0.5 * 2.5)
    assert array_of(layer.moving_variance).item() == pytest.approx(0.5 * 1 + 0.5 * 1.25)


def test_without_training_a_call_is_inference():
    layer = norm()
    layer(column(1, 2, 3, 4))
    assert array_of(layer.moving_mean).item() == 0.0


def test_a_frozen_layer_normalises_by_its_moving_statistics_in_training_too():
    layer = norm()
    layer.trainable = False
    layer(column(1, 2, 3, 4), training=True)
    assert array_of(layer.moving_mean).item() == 0.0


def test_training_false_in_the_graph_does_not_survive_training():
    inputs = keras.Input((1,))
    layer = L.BatchNormalization(momentum=0.5)
    model = keras.Model(inputs, layer(inputs, training=False))
    model(column(1, 2, 3, 4), training=True)
    assert array_of(layer.moving_mean).item() == pytest.approx(1.25)


def test_one_value_per_channel_is_no_error():
    layer = norm()
    assert array_of(layer(column(3.0), training=True)).item() == 0.0


def test_the_flag_of_a_model_is_set_for_all_its_layers():
    model = keras.Sequential([keras.Input((2,)), L.Dense(2), L.BatchNormalization()])
    model.trainable = False
    assert not any(layer.trainable for layer in model.layers)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="a fault of this backend alone")
def test_on_torch_the_variance_is_a_difference_of_large_numbers():
    values = np.random.default_rng(0).normal(3000, 1, size=(64, 1)).astype("float32")
    layer = norm()
    layer(values, training=True)
    batch = 2 * array_of(layer.moving_variance).item() - 1
    assert abs(batch - values.astype("float64").var()) > 0.01


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="a module is torch's")
def test_on_torch_a_model_is_a_module_whose_modes_mean_nothing():
    model = keras.Sequential([keras.Input((1,)), L.BatchNormalization(momentum=0.5)])
    assert isinstance(model, torch.nn.Module)
    model.train()
    model(column(1, 2, 3, 4))
    assert array_of(model.layers[0].moving_mean).item() == 0.0


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a fault of this backend alone")
def test_channels_first_adds_biases_to_the_last_axis_where_that_is_as_long():
    conv = L.Conv1D(5, 3, data_format="channels_first", bias_initializer="random_normal")
    conv.build((None, 4, 7))  # makes (N, 5, 5)
    x = np.zeros((1, 4, 7), dtype="float32")
    np.testing.assert_allclose(array_of(conv(x))[0, 0], array_of(conv.bias), rtol=1e-6)
    longer = np.zeros((1, 4, 8), dtype="float32")
    np.testing.assert_allclose(array_of(conv(longer))[0, :, 0], array_of(conv.bias), rtol=1e-6)
