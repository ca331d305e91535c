import keras
import numpy as np
import pytest
import torch
from keras import layers as L

import bnkit
import bnkit.keras as bnk
from bnkit.keras.kernels import array_of
from keras_models import alive, as_torch, images, nested, state


def test_the_gap_is_that_of_the_torch_twin(rng):
    model = alive(
        keras.Sequential([keras.Input((5,)), L.BatchNormalization(name="n"), L.Dropout(0.5)])
    )
    twin = torch.nn.Sequential(torch.nn.BatchNorm1d(5, eps=1e-3), torch.nn.Dropout()).double()
    with torch.no_grad():
        for ours, weight in zip(
            (twin[0].weight, twin[0].bias, twin[0].running_mean, twin[0].running_var),
            model.layers[0].weights,
            strict=True,
        ):
            ours.copy_(as_torch(array_of(weight)))
    x = rng.normal(2, 3, size=(40, 5)).astype("float32")
    found, wanted = bnk.explain_gap(model, x), bnkit.explain_gap(twin, as_torch(x))
    assert found.rows == wanted.rows == 40
    assert found.output_difference == pytest.approx(wanted.output_difference, rel=1e-5)
    ours, theirs = found.layers[0], wanted.layers[0]
    for name in ("mean_shift", "least_variance_ratio", "own_difference", "chance", "difference"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-5), name


def test_recalibration_on_the_mini_batch_closes_it_and_the_model_stays_as_it_was():
    model, x = nested(), images(32)
    model.get_layer("inner").get_layer("frozen").trainable = True
    before = state(model)
    gap = bnk.explain_gap(model, (x, np.zeros(32)))
    assert gap.output_difference > 0.1
    assert [layer.layer for layer in gap.layers][:2] == ["norm", "inner/frozen"]
    assert "first diverge at 'norm'" in str(gap)
    good = bnk.recalibrate(model, x, progress=False)
    assert bnk.explain_gap(good, x).output_difference < 1e-4
    assert state(model) == before


def test_frozen_batch_norms_are_left_out_with_the_reason():
    assert bnk.explain_gap(nested(), images()).left_out == {
        "inner/frozen": "frozen: its trainable is False"
    }


def test_what_cannot_be_compared_is_refused():
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization(name="n")])
    with pytest.raises(ValueError, match="gives layer 'n' one value per channel"):
        bnk.explain_gap(model, np.zeros((1, 3)))
    with pytest.raises(ValueError, match="'n' gets values that are not finite"):
        bnk.explain_gap(model, np.full((4, 3), np.nan))
    with pytest.raises(ValueError, match="no gap to explain: the model has no BatchNormal"):
        bnk.explain_gap(keras.Sequential([keras.Input((3,)), L.ReLU()]), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="`threshold` is -1: pass a number of at least 0"):
        bnk.explain_gap(model, np.zeros((4, 3)), threshold=-1)
    with pytest.raises(ValueError, match="`batch` is a list of several mini-batches: pass one"):
        bnk.explain_gap(model, [np.zeros((4, 3))] * 3)
