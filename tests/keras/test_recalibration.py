import keras
import numpy as np
import pytest
from keras import layers as L

import bnkit.keras as bnk
from bnkit.keras.kernels import array_of
from keras_models import alive, error, images, nested, sequential, state


def batches(rows=30):
    x = images(rows)
    return [x[:7], x[7:20], x[20:]]


def seen_by(model, path, x):
    """Return what a batch norm of the outer model gets in inference, (…, C) in float64."""
    layer = model.get_layer(path)
    return array_of(keras.Model(model.input, layer.input)(x))


def test_one_batch_norm_gets_the_population_statistics_of_all_batches(rng):
    x = rng.normal(1e4, 1.0, size=(50, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), L.BatchNormalization(name="n")])
    good = bnk.recalibrate(model, [x[:20], x[20:]], progress=False)
    wide = x.astype("float64")
    np.testing.assert_allclose(array_of(good.layers[0].moving_mean), wide.mean(0), rtol=1e-7)
    # biased, and right where float32's E[x²] − E[x]² would have no digit left
    np.testing.assert_allclose(array_of(good.layers[0].moving_variance), wide.var(0), rtol=1e-6)


def test_layer_by_layer_is_exact_in_inference_and_leaves_the_original():
    model = nested()
    before = state(model)
    good = bnk.recalibrate(model, batches(), estimator="layer_by_layer", progress=False)
    assert state(model) == before
    x = np.concatenate(batches())
    for name in ("norm", "late"):
        values, norm = seen_by(good, name, x), good.get_layer(name)
        np.testing.assert_allclose(
            array_of(norm.moving_mean), values.mean((0, 1, 2)), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(array_of(norm.moving_variance), values.var((0, 1, 2)), rtol=1e-5)


def test_one_mini_batch_gives_what_training_normalises_by():
    model, x = nested(dropout=0.0), images(16)
    good = bnk.recalibrate(model, x, progress=False)
    # frozen batch norms stay, so inference on that mini-batch is training on it
    assert error(good(x), good(x, training=True)) < 1e-4


def test_frozen_and_unchosen_batch_norms_stay_and_are_named():
    plan = bnk.plan_recalibration(
        nested(), batches(), where=lambda path, _: path != "late", progress=False
    )
    assert plan.left_alone == {
        "late": "`where` did not choose it",
        "inner/frozen": "frozen: its trainable is False",
    }
    assert [shift.layer for shift in plan.layers] == [
        "norm",
        "inner/before",
        "inner/after",
        "inner/behind",
    ]
    assert "3 mini-batches" in str(plan)


def test_values_that_the_mask_leaves_out_are_left_out(rng):
    inputs = keras.Input((6, 4))
    h = L.BatchNormalization(name="n")(L.Masking(0.0)(inputs))
    model = keras.Model(inputs, h)
    x = rng.normal(size=(10, 6, 4)).astype("float32")
    x[:, 4:] = 0.0
    good = bnk.recalibrate(model, x, progress=False)
    np.testing.assert_allclose(
        array_of(good.get_layer("n").moving_mean), x[:, :4].mean((0, 1)), rtol=1e-5, atol=1e-6
    )


def test_the_forms_of_batches_mean_the_same(rng):
    x, y = images(20), rng.integers(0, 3, 20)

    class Sequence(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            part = slice(10 * index, 10 * index + 10)
            return x[part], y[part]

    forms = [
        [x[:10], x[10:]],
        [(x[:10], y[:10]), (x[10:], y[10:])],
        [[x[:10], y[:10]], [x[10:], y[10:]]],
        Sequence(),
        iter([x[:10], x[10:]]),
    ]
    model = nested()
    found = [bnk.recalibrate(model, form, progress=False) for form in forms]
    for other in found[1:]:
        for ours, theirs in zip(found[0].weights, other.weights, strict=True):
            np.testing.assert_array_equal(array_of(ours), array_of(theirs))


def test_a_list_of_arrays_is_read_by_the_number_of_inputs(rng):
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([a, b], L.BatchNormalization(name="n")(a + b))
    x, y = (rng.normal(size=(9, 3)).astype("float32") for _ in range(2))
    good = bnk.recalibrate(model, [x, y], progress=False)
    np.testing.assert_allclose(
        array_of(good.get_layer("n").moving_mean), (x + y).mean(0), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="a list of 3 arrays, and the model has 2 inputs"):
        bnk.recalibrate(model, [x, y, x], progress=False)


@pytest.mark.parametrize(
    ("wrong", "kind", "text"),
    [
        ([], ValueError, "`batches`"),
        (3, TypeError, "`batches` is a int: pass an array"),
        ("text", TypeError, "`batches` is a str"),
    ],
)
def test_what_is_not_batches_is_refused(wrong, kind, text):
    with pytest.raises(kind, match=text):
        bnk.recalibrate(nested(), wrong, progress=False)


def test_nothing_to_measure_and_values_that_are_not_finite_are_errors():
    with pytest.raises(ValueError, match="nothing to measure: the model has no BatchNormal"):
        bnk.recalibrate(keras.Sequential([keras.Input((2,)), L.ReLU()]), np.zeros((2, 2)))
    x = images(4)
    x[1] = np.inf
    model = nested()
    before = state(model)
    with pytest.raises(ValueError, match=r"^layer 'norm' gets values that are not finite"):
        bnk.recalibrate(model, x, progress=False)
    assert state(model) == before
    with pytest.raises(ValueError, match="`estimator` is 'best'"):
        bnk.recalibrate(model, images(4), estimator="best")
    with pytest.raises(ValueError, match="used up after one pass"):
        bnk.recalibrate(model, iter([images(4)]), estimator="layer_by_layer")


def test_a_frozen_model_has_nothing_to_measure():
    model = alive(keras.Sequential([keras.Input((2,)), L.BatchNormalization(name="n")]))
    model.trainable = False
    with pytest.raises(ValueError, match="n: frozen: its trainable is False"):
        bnk.recalibrate(model, np.zeros((3, 2), "float32"))


@pytest.mark.parametrize("features", [None, 5])
def test_statistics_of_another_model_are_refused(features):
    plan = bnk.plan_recalibration(sequential(), np.ones((4, 8)) * np.arange(4)[:, None])
    norm = [] if features is None else [L.BatchNormalization(name="norm")]
    other = keras.Sequential([keras.Input((features or 3,)), *norm, L.Dense(2)])
    with pytest.raises(ValueError, match="`model` has no BatchNormalization 'norm' of 6 features"):
        plan.apply(other)
