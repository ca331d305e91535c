"""The ten troubles that Keras users report most, as they meet them, and what bnkit does.

The table of docs/keras.md has a row for each, in this order.
"""

import keras
import numpy as np
import pytest
from keras import layers as L

import bnkit.keras as bnk
from bnkit.keras.kernels import array_of
from keras_models import error, state


def classes(rng, rows=256, mean=0.0, std=1.0):
    """Points of four features in two classes that a line parts."""
    x = rng.normal(size=(rows, 4))
    return (mean + std * x).astype("float32"), (x[:, 0] > 0).astype("int32")


def compiled(model, learning_rate=0.05):
    optimizer = keras.optimizers.Adam(learning_rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def network(*first):
    body = [L.Dense(16, use_bias=False), L.BatchNormalization(name="n"), L.ReLU()]
    return keras.Sequential([keras.Input((4,)), *first, *body, L.Dense(2, activation="softmax")])


def accuracy(model, x, y):
    answers = array_of(keras.ops.argmax(model(x, training=False), -1))
    return float((answers == y).mean())


def rules(model, batches=None):
    return {finding.rule for finding in bnk.diagnose(model, batches).findings}


def test_1_training_is_good_and_validation_bad_on_the_same_data(rng):
    x, y = classes(rng, mean=30.0, std=3.0)
    model = compiled(network())
    history = model.fit(x, y, batch_size=64, epochs=8, verbose=0).history
    assert history["accuracy"][-1] > 0.85
    assert accuracy(model, x, y) < 0.7  # the moving mean has come a quarter of its way
    assert [layer.layer for layer in bnk.explain_gap(model, x).diverging] == ["n"]
    assert {"stale-statistics", "train-eval-gap"} <= rules(model, [x[:128], x[128:]])
    assert accuracy(bnk.recalibrate(model, x, progress=False), x, y) > 0.85


@pytest.mark.parametrize("compiled_before", [False, True], ids=["in the graph", "after compile"])
def test_2_layers_that_are_frozen_are_found_to_train(compiled_before, rng):
    base = keras.Sequential([keras.Input((4,)), L.BatchNormalization(name="n")], name="base")
    inputs = keras.Input((4,))
    h = base(inputs) if compiled_before else base(inputs, training=False)
    model = compiled(keras.Model(inputs, L.Dense(2, activation="softmax")(h)))
    if compiled_before:
        base.trainable = False
        assert "frozen-after-compile" in rules(model)
        return
    assert "training-false-overridden" in rules(model)
    fixed = compiled(bnk.diagnose(model).fixed(model, severity="warning"))
    for each, moves in ((model, True), (fixed, False)):
        each.fit(*classes(rng, mean=5.0), epochs=1, verbose=0)
        norm = each.get_layer("base").get_layer("n")
        assert bool(array_of(norm.moving_mean).any()) is moves


def test_3_a_fine_tuned_network_stays_at_chance_in_evaluate(rng):
    model = compiled(network())
    model.fit(*classes(rng), epochs=20, verbose=0)
    x, y = classes(rng, mean=40.0, std=4.0)  # the new data
    compiled(model, 0.01).fit(x, y, epochs=3, batch_size=128, verbose=0)
    gap = bnk.explain_gap(model, x)
    assert [layer.layer for layer in gap.diverging] == ["n"]
    before, after = (accuracy(m, x, y) for m in (model, bnk.recalibrate(model, x, progress=False)))
    assert after > before + 0.2


def test_4_a_loop_of_ones_own_never_updates_the_statistics(rng):
    x, y = classes(rng, mean=3.0)
    model = compiled(network())
    # what a loop does that calls model(x) without training=True
    kept = {w.path: array_of(w) for w in model.get_layer("n").non_trainable_weights}
    model.fit(x, y, epochs=2, verbose=0)
    for weight in model.get_layer("n").non_trainable_weights:
        weight.assign(kept[weight.path])
    found = bnk.diagnose(model, x)
    (finding,) = [f for f in found.findings if f.rule == "never-updated"]
    assert "training=True" in finding.why
    assert accuracy(found.fixed(model), x, y) > 0.85


def test_5_a_variance_that_is_wrong(rng):
    one = rng.normal(size=(1, 4)).astype("float32")
    assert "one-value-per-channel" in rules(network(), [one])
    few = rng.normal(size=(3, 4)).astype("float32")
    assert "noisy-statistics" in rules(network(), [few])
    negative = network()
    negative.get_layer("n").moving_variance.assign(np.full(16, -2.0))
    with pytest.raises(ValueError, match="the moving variance of 'n' is -2 somewhere"):
        bnk.fold(negative)
    x = rng.normal(3000, 1, size=(64, 4)).astype("float32")
    assert "non-finite" in rules(negative, x)
    good = bnk.recalibrate(negative, x, progress=False)
    assert "non-finite" not in rules(good, x)
    seen = keras.Model(good.inputs[0], good.get_layer("n").input)
    wide = array_of(seen(x))
    np.testing.assert_allclose(
        array_of(good.get_layer("n").moving_variance), wide.var(0), rtol=1e-4
    )
    if keras.backend.backend() == "torch":  # the others compute it well
        assert "cancelled-variance" in rules(network(), x * 10)


def test_6_padding_enters_the_statistics_and_a_mask_keeps_it_out(rng):
    x = rng.normal(2, 1, size=(16, 20, 3)).astype("float32")
    x[:, 8:] = 0.0
    norm = L.BatchNormalization
    assert "padding-in-statistics" in rules(keras.Sequential([keras.Input((20, 3)), norm()]), x)
    masked = keras.Sequential([keras.Input((20, 3)), L.Masking(0.0), norm(name="n")])
    assert "padding-in-statistics" not in rules(masked, x)
    good = bnk.recalibrate(masked, x, progress=False)
    np.testing.assert_allclose(
        array_of(good.get_layer("n").moving_mean), x[:, :8].mean((0, 1)), rtol=1e-4
    )


def test_7_the_axis_is_wrong_with_channels_first():
    layers = [L.Conv2D(4, 3, data_format="channels_first"), L.BatchNormalization()]
    assert "wrong-axis" in rules(keras.Sequential([keras.Input((3, 8, 8)), *layers]))


def test_8_one_batch_norm_normalises_several_inputs(rng):
    a, b = keras.Input((4,)), keras.Input((4,))
    norm = L.BatchNormalization(name="n")
    model = keras.Model([a, b], norm(a) + norm(b))
    x, y = (rng.normal(mean, 1, size=(64, 4)).astype("float32") for mean in (0, 5))
    found = bnk.diagnose(model, [((x, y), 0)])
    (finding,) = [f for f in found.findings if f.rule == "several-distributions"]
    assert finding.severity == "warning"


def test_9_batch_norm_is_put_into_a_small_vgg(rng):
    layers = list[keras.Layer]()
    for width in (8, 16):
        layers += [L.Conv2D(width, 3, padding="same", activation="relu") for _ in range(2)]
        layers.append(L.MaxPooling2D())
    layers += [L.Flatten(), L.Dense(32, activation="relu"), L.Dense(10, activation="softmax")]
    vgg = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    x = rng.normal(size=(32, 16, 16, 3)).astype("float32")
    before = state(vgg)
    inserted, added = bnk.insert(vgg, [x[:16], x[16:]]), bnk.add(vgg)
    assert error(vgg(x), inserted(x)) < 1e-5
    for model in (inserted, added):
        assert sum(isinstance(layer, L.BatchNormalization) for layer in model.layers) == 5
    assert state(vgg) == before
    compiled(inserted).fit(x, np.arange(32) % 10, epochs=1, verbose=0)


def test_10_batch_norm_is_folded_for_deployment_and_its_port_from_torch_is_looked_at(rng):
    x, y = classes(rng)
    model = compiled(network())
    model.fit(x, y, epochs=2, verbose=0)
    small = bnk.fold(model, x)
    assert not any(isinstance(layer, L.BatchNormalization) for layer in small.layers)
    assert error(model(x), small(x)) < 1e-5
    ported = keras.Sequential(
        [keras.Input((4,)), L.Dense(4), L.BatchNormalization(momentum=0.1, name="n"), L.ReLU()]
    )
    assert {"unfolded", "torch-momentum"} <= rules(ported)
    assert bnk.diagnose(ported).fixed(ported).get_layer("n").momentum == 0.9
