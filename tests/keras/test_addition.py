import keras
import numpy as np
import pytest
import torch
from keras import layers as L

import bnkit
import bnkit.keras as bnk
from bnkit.keras.kernels import array_of
from bnkit.surgery import SurgeryError
from keras_models import alive, as_torch, error, images, names, nested, state

PLACEMENTS = ["before_activation", "after_activation"]


def vgg_like():
    inputs = keras.Input((12, 12, 3))
    h = L.Conv2D(4, 3, activation="relu", name="conv1")(inputs)
    h = L.MaxPooling2D(name="pool")(h)
    h = L.Conv2D(6, 3, name="conv2")(h)
    h = L.Dropout(0.3, name="drop")(h)
    h = L.LeakyReLU(name="leaky")(h)
    h = L.Flatten(name="flat")(h)
    h = keras.ops.gelu(L.Dense(7, name="dense1")(h))
    return alive(keras.Model(inputs, L.Dense(5, activation="softmax", name="dense2")(h)))


def test_add_normalises_what_an_activation_follows_and_says_why_not_elsewhere():
    plan = bnk.plan_addition(vgg_like())
    assert [(edit.layer, edit.why) for edit in plan.edits] == [
        ("conv1", "its activation is relu"),
        ("conv2", "'leaky' (LeakyReLU) follows"),
        ("dense1", "'gelu' (Gelu) follows"),
    ]
    assert [(left.layer, left.why) for left in plan.left_alone] == [
        ("dense2", "output layer: its result leaves the model")
    ]


def test_the_twin_has_the_same_layers_and_arrays_but_for_biases():
    model = vgg_like()
    before = state(model)
    twin = bnk.add(model, momentum=0.9, epsilon=1e-5)
    assert state(model) == before
    assert names(twin)[1:] == [
        *("conv1", "conv1_batchnorm", "conv1_relu", "pool", "conv2", "conv2_batchnorm", "drop"),
        *("leaky", "flat", "dense1", "dense1_batchnorm", "dense2"),
    ]
    for name in ("conv1", "conv2", "dense1"):
        ours, other = twin.get_layer(name), model.get_layer(name)
        assert not ours.use_bias
        np.testing.assert_array_equal(array_of(ours.kernel), array_of(other.kernel))
    norm = twin.get_layer("conv1_batchnorm")
    assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
    np.testing.assert_array_equal(
        array_of(twin.get_layer("dense2").bias), array_of(model.get_layer("dense2").bias)
    )


def test_the_new_batch_norm_has_the_flag_and_the_policy_of_its_layer():
    inputs = keras.Input((4,))
    h = L.Dense(5, activation="relu", trainable=False, dtype="mixed_float16", name="d")(inputs)
    twin = bnk.add(alive(keras.Model(inputs, L.Dense(2)(h))))
    norm = twin.get_layer("d_batchnorm")
    assert not norm.trainable
    assert norm.dtype_policy.name == "mixed_float16"


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_insert_computes_the_same_and_fold_takes_it_out_again(placement):
    model, x = vgg_like(), images(40)
    before = state(model)
    inserted = bnk.insert(model, [x[:25], x[25:]], placement=placement)
    assert state(model) == before
    assert error(model(x), inserted(x)) < 2e-6
    norms = [n for n in names(inserted) if n.endswith("batchnorm")]
    assert len(norms) == 3
    if placement == "before_activation":
        folded = bnk.fold(inserted, x)
        assert [n for n in names(folded) if n.endswith("batchnorm")] == []
        assert error(model(x), folded(x)) < 2e-6


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_each_insertion_is_proven_by_itself_in_float64(placement, monkeypatch):
    from bnkit.keras import addition  # noqa: PLC0415  what is broken on purpose

    model, x = vgg_like(), images(40)
    proof = bnk.plan_insertion(model, x, placement=placement).proof
    assert 0 <= proof.error_in_float64 < 1e-13
    assert proof.error < 1e-5
    assert "in float64 (layer by layer)" in str(proof)
    sound = addition._undoing

    def wrong(place, *found):
        values = sound(place, *found)
        return values | ({"beta": values["beta"] + 1e-6} if place.norm[:6] == "dense1" else {})

    monkeypatch.setattr(addition, "_undoing", wrong)
    host = r"^'dense1' \(Dense\)" if placement == "before_activation" else r"^'gelu\w*' \(Gelu\)"
    with pytest.raises(SurgeryError, match=f"{host} does not undo its batch norm exactly"):
        bnk.insert(model, x, placement=placement)


def test_insert_measures_exactly_what_each_batch_norm_gets():
    model, x = vgg_like(), images(40)
    inserted = bnk.insert(model, [x[:25], x[25:]])
    values = array_of(keras.Model(model.input, model.get_layer("conv2").output)(x))
    norm = inserted.get_layer("conv2_batchnorm")
    bias = array_of(model.get_layer("conv2").bias)
    mean, variance = values.mean((0, 1, 2)), values.var((0, 1, 2))
    np.testing.assert_allclose(array_of(norm.moving_mean), mean - bias, rtol=1e-6)
    np.testing.assert_allclose(array_of(norm.moving_variance), variance, rtol=1e-6)
    np.testing.assert_allclose(array_of(norm.beta), mean, rtol=1e-6)
    np.testing.assert_allclose(array_of(norm.gamma), np.sqrt(variance + 1e-3), rtol=1e-6)


def test_insert_gives_the_arrays_that_the_torch_twin_gets(rng):
    model = alive(
        keras.Sequential([keras.Input((6,)), L.Dense(5, name="d"), L.ReLU(), L.Dense(2, name="e")])
    )
    twin = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    for ours, layer in ((twin[0], model.layers[0]), (twin[2], model.layers[2])):
        ours.weight.data = as_torch(array_of(layer.kernel)).float().T.contiguous()
        ours.bias.data = as_torch(array_of(layer.bias)).float()
    x = rng.normal(size=(30, 6)).astype("float32")
    inserted = bnk.insert(model, x, epsilon=1e-3)
    norm = bnkit.insert(twin, torch.from_numpy(x), eps=1e-3)[0].batchnorm
    ours = inserted.get_layer("d_batchnorm")
    biased = norm.running_var.double() * 29 / 30  # torch stores the unbiased variance of 30 rows
    np.testing.assert_allclose(array_of(ours.moving_variance), biased, rtol=1e-6)
    np.testing.assert_allclose(array_of(ours.gamma), (biased + 1e-3).sqrt(), rtol=1e-6)
    np.testing.assert_allclose(array_of(ours.beta), norm.bias.detach(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(array_of(ours.moving_mean), norm.running_mean, rtol=1e-5, atol=1e-7)


def test_a_nested_model_and_a_frozen_base_keep_their_flags():
    base = keras.Sequential(
        [keras.Input((12, 12, 3)), L.Conv2D(4, 3, activation="relu", name="c"), L.Flatten()],
        name="base",
    )
    base.trainable = False
    inputs = keras.Input((12, 12, 3))
    model = keras.Model(inputs, L.Dense(2, name="head")(base(inputs)))
    twin = bnk.insert(model, images(8))
    assert not twin.get_layer("base").trainable
    assert len(twin.trainable_weights) == 2
    assert names(twin.get_layer("base"))[:2] == ["c", "c_batchnorm"]


def test_layers_are_left_with_the_reason():
    inputs = keras.Input((6,))
    twice = L.Dense(6, activation="relu", name="twice")
    h = twice(twice(inputs))
    h = L.ReLU()(L.BatchNormalization(name="bn")(L.Dense(6, name="normalised")(h)))
    h = L.Dense(6, name="linear")(h) * 2
    h = L.Dense(6, activation="softmax", name="gate")(h) * h
    model = keras.Model(inputs, L.Dense(2, name="last")(h))
    why = {left.layer: left.why for left in bnk.plan_addition(model).left_alone}
    assert why == {
        "twice": "called 2 times in one forward: its outputs have several distributions",
        "normalised": "already normalised: 'bn' (BatchNormalization) follows",
        "linear": "no activation follows: 'multiply' (Multiply) reads its output first",
        "gate": "its activation is softmax, which makes an output",
        "last": "output layer: its result leaves the model",
    }


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.TimeDistributed(L.Dense(4, activation="relu")),
        lambda: L.Bidirectional(L.LSTM(4, return_sequences=True)),
        lambda: L.EinsumDense("abc,cd->abd", output_shape=(6, 4), activation="relu"),
        lambda: L.SpectralNormalization(L.Dense(4, activation="relu")),
    ],
    ids="TimeDistributed Bidirectional EinsumDense SpectralNormalization".split(),
)
def test_layers_that_hold_others_are_left_with_the_reason(layer):
    held = layer()
    model = keras.Sequential([keras.Input((6, 3)), held, L.Dense(5, activation="relu"), L.Dense(2)])
    plan = bnk.plan_addition(model)
    assert [edit.kind for edit in plan.edits] == ["Dense"]
    why = {left.layer: left.why for left in plan.left_alone}
    kind = type(held).__name__
    assert why[held.name] == f"{kind}: only Dense and conv layers themselves are normalised"


def test_where_chooses_and_nothing_left_is_an_error():
    plan = bnk.plan_addition(vgg_like(), where=lambda path, _layer: path.startswith("conv"))
    assert [edit.layer for edit in plan.edits] == ["conv1", "conv2"]
    with pytest.raises(SurgeryError, match="nothing to normalise: conv1: `where` did not choose"):
        bnk.add(vgg_like(), where=lambda *_: False)
    with pytest.raises(SurgeryError, match="the model has no dense or conv layer"):
        bnk.add(keras.Sequential([keras.Input((3,)), L.ReLU()]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"momentum": 1.5}, r"`momentum` is 1\.5: pass the share that is kept"),
        ({"epsilon": 0}, "`epsilon` is 0: pass a positive number"),
        ({"placement": "inside"}, "`placement` is 'inside': choose from"),
    ],
)
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        bnk.add(vgg_like(), **options)


def test_values_that_are_not_finite_are_refused_with_the_layer():
    x = images(8)
    x[3] = np.nan
    with pytest.raises(SurgeryError, match=r"^'conv1' makes values that are not finite"):
        bnk.insert(vgg_like(), x)


def test_the_twin_trains(rng):
    twin = bnk.add(vgg_like())
    twin.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    before = array_of(twin.get_layer("conv1_batchnorm").moving_mean)
    twin.fit(images(32), rng.integers(0, 5, 32), epochs=1, verbose=0)
    assert not np.array_equal(before, array_of(twin.get_layer("conv1_batchnorm").moving_mean))


def test_nested_batch_norms_are_not_added_twice():
    plan = bnk.plan_addition(nested())
    assert plan.edits == ()
    assert all("normalised" in left.why or "output" in left.why for left in plan.left_alone)
