import keras
import numpy as np
import pytest
import torch
from keras import layers as L

import bnkit
import bnkit.keras as bnk
from bnkit.keras.folding import survey
from bnkit.keras.kernels import array_of
from bnkit.surgery import SurgeryError
from keras_models import alive, error, images, names, nested, sequential, state

# With 7, some outputs are as long as they have features, where TensorFlow adds biases wrongly:
# see test_semantics.py.
SIZE = 13


def folded_away(model):
    return [x for x in model._flatten_layers() if isinstance(x, L.BatchNormalization)]


def small(*layers, shape, seed=0):
    return alive(keras.Sequential([keras.Input(shape), *layers]), seed)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(
    ("layer", "rank"),
    [
        (lambda **_: L.Dense(5), 0),
        (lambda **how: L.Conv1D(5, 3, **how), 1),
        (lambda **how: L.Conv2D(6, 3, groups=2, strides=2, padding="same", **how), 2),
        (lambda **how: L.Conv2D(5, (1, 3), dilation_rate=(1, 2), use_bias=False, **how), 2),
        (lambda **how: L.Conv3D(3, 2, **how), 3),
        (lambda **how: L.Conv1DTranspose(5, 3, strides=2, **how), 1),
        (lambda **how: L.Conv2DTranspose(5, 3, strides=2, padding="same", **how), 2),
        (lambda **how: L.Conv3DTranspose(2, 2, **how), 3),
        (lambda **how: L.DepthwiseConv1D(3, depth_multiplier=2, **how), 1),
        (lambda **how: L.DepthwiseConv2D(3, depth_multiplier=3, padding="same", **how), 2),
        (lambda **how: L.SeparableConv1D(5, 3, depth_multiplier=2, **how), 1),
        (lambda **how: L.SeparableConv2D(5, 3, depth_multiplier=2, padding="same", **how), 2),
    ],
)
def test_every_layer_takes_a_batch_norm_behind_it_in(layer, rank, data_format, rng):
    how = {} if rank == 0 else {"data_format": data_format}
    first = rank and data_format == "channels_first"
    shape = (4,) if not rank else (4, *[SIZE] * rank) if first else (*[SIZE] * rank, 4)
    model = small(layer(**how), L.BatchNormalization(axis=1 if first else -1), shape=shape)
    x = rng.normal(size=(3, *shape)).astype("float32")
    small_model = bnk.fold(model, x)
    assert folded_away(small_model) == []
    assert error(model(x), small_model(x)) < 1e-6


@pytest.mark.parametrize(
    ("layer", "rank"),
    [
        (lambda **_: L.Dense(5), 0),
        (lambda **how: L.Conv1D(6, 3, groups=2, **how), 1),
        (lambda **how: L.Conv2D(5, 3, strides=2, **how), 2),
        (lambda **how: L.Conv2D(5, 1, padding="same", **how), 2),
        (lambda **how: L.DepthwiseConv2D(3, depth_multiplier=2, **how), 2),
        (lambda **how: L.SeparableConv2D(5, 3, depth_multiplier=2, **how), 2),
        (lambda **how: L.Conv2DTranspose(5, 1, **how), 2),
    ],
)
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_a_layer_that_does_not_pad_takes_a_batch_norm_before_it_in(layer, rank, data_format, rng):
    how = {} if rank == 0 else {"data_format": data_format}
    first = rank and data_format == "channels_first"
    shape = (4,) if not rank else (4, *[SIZE] * rank) if first else (*[SIZE] * rank, 4)
    model = small(L.BatchNormalization(axis=1 if first else -1), layer(**how), shape=shape)
    x = rng.normal(size=(3, *shape)).astype("float32")
    small_model = bnk.fold(model, x)
    assert folded_away(small_model) == []
    assert error(model(x), small_model(x)) < 1e-6


FLAT = {
    "into a dense layer behind Flatten": (
        (L.BatchNormalization(), L.Flatten(), L.Dense(3)),
        (4, 5, 6),
    ),
    "behind pooling and Flatten": (
        (L.BatchNormalization(), L.AveragePooling2D(2), L.Dropout(0.5), L.Flatten(), L.Dense(3)),
        (4, 6, 6),
    ),
    "of channels_first behind Flatten": (
        (L.BatchNormalization(axis=1), L.Flatten(), L.Dense(3)),
        (4, 5, 6),
    ),
    "into a dense layer before Reshape": (
        (L.Dense(24), L.Reshape((2, 3, 4)), L.BatchNormalization()),
        (7,),
    ),
    "on the first axis after Reshape": (
        (L.Dense(24), L.Reshape((2, 3, 4)), L.BatchNormalization(axis=1)),
        (7,),
    ),
    "behind Permute": (
        (L.Conv1D(4, 3), L.Permute((2, 1)), L.BatchNormalization(axis=1)),
        (9, 5),
    ),
    "into a conv behind Reshape": (
        (L.BatchNormalization(), L.Reshape((4, 10)), L.Reshape((4, 2, 5)), L.Permute((1, 3, 2)),
         L.Permute((1, 3, 2)), L.Reshape((4, 10)), L.Conv1D(3, 2)),
        (4, 10),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("layers", "shape"), FLAT.values(), ids=FLAT)
def test_features_are_followed_through_what_moves_them(layers, shape, rng):
    copies = [type(layer).from_config(layer.get_config()) for layer in layers]
    model = small(*copies, shape=shape)
    x = rng.normal(size=(3, *shape)).astype("float32")
    plan = bnk.plan_folding(model, x)
    assert len(plan.edits) == 1
    assert plan.proof.error_in_float64 < 1e-13
    assert error(model(x), plan.apply(model)(x)) < 2e-6


@pytest.mark.parametrize(
    ("layers", "shape", "why"),
    [
        pytest.param(
            (L.Conv1D(4, 3), L.Flatten(), L.BatchNormalization()),
            (9, 5),
            "another axis than the batch norm",
            id="a place of its own for each channel",
        ),
        pytest.param(
            (L.Dense(27), L.Reshape((3, 9)), L.AveragePooling1D(3), L.BatchNormalization()),
            (5,),
            None,
            id="means over features of one channel",
        ),
        pytest.param(
            (L.Dense(27), L.Reshape((9, 3)), L.Permute((2, 1)), L.AveragePooling1D(3),
             L.BatchNormalization(axis=1)),
            (5,),
            "another axis than the batch norm",
            id="means over features",
        ),
        pytest.param(
            (L.BatchNormalization(), L.Reshape((-1, 2)), L.Dense(3)),
            (None, 4),
            "values of unknown size, which",
            id="an unknown size",
        ),
    ],
)  # fmt: skip
def test_features_that_are_mixed_are_left_with_the_reason(layers, shape, why):
    model = small(*layers, shape=shape)
    plan = survey(model)
    if why is None:
        assert [left.why for left in plan.left_alone if "another axis" not in left.why] == []
    else:
        assert why in plan.left_alone[0].why
    assert plan.edits == ()


def test_a_nested_model_is_folded_within_and_stays_nested():
    model, x = nested(), images()
    before = state(model)
    plan = bnk.plan_folding(model, x)
    small_model = plan.apply(model)
    assert state(model) == before
    assert {edit.layer: edit.action for edit in plan.edits} == {
        "norm": "fold into 'conv' (Conv2D)",
        "inner/frozen": "fold into 'inner/grouped' (Conv2D)",
        "inner/before": "fold into 'inner/separable' (SeparableConv2D)",
        "inner/after": "fold into 'inner/separable' (SeparableConv2D)",
        "inner/behind": "fold into 'inner/transposed' (Conv2DTranspose)",
        "late": "fold into 'head' (Dense)",
    }
    assert error(model(x), small_model(x)) < 2e-6
    assert type(small_model) is type(model)
    assert type(small_model.get_layer("inner")) is keras.Sequential
    kept = [name for name in names(model) if name not in ("norm", "late")]
    assert names(small_model) == kept


def test_the_arrays_are_those_that_torch_folds_into_the_twin():
    model = sequential()
    linear, norm = torch.nn.Linear(8, 6, bias=False), torch.nn.BatchNorm1d(6, eps=1e-3)
    kernel, *values = (
        torch.from_numpy(array_of(v)).float()
        for v in (model.layers[0].kernel, *model.layers[1].weights)
    )
    linear.weight.data = kernel.T.contiguous()
    norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var = values
    twin = torch.nn.utils.fuse_linear_bn_eval(linear.eval(), norm.eval())
    first = bnk.fold(model).layers[0]
    np.testing.assert_allclose(array_of(first.kernel), twin.weight.detach().T, rtol=1e-6)
    np.testing.assert_allclose(array_of(first.bias), twin.bias.detach(), rtol=1e-5, atol=1e-7)


def test_values_flags_policies_and_seeds_are_those_of_the_original():
    model = nested()
    model.get_layer("conv").trainable = False
    small_model = bnk.fold(model, images())
    conv, head = small_model.get_layer("conv"), small_model.get_layer("head")
    assert not conv.trainable
    assert conv.use_bias
    assert [w.path for w in conv.trainable_weights] == []
    assert head.dtype_policy.name == model.get_layer("head").dtype_policy.name
    ours = model.get_layer("dropout").seed_generator.state
    copied = small_model.get_layer("dropout").seed_generator.state
    np.testing.assert_array_equal(array_of(ours), array_of(copied))


def test_a_batch_norm_is_left_with_the_reason():
    inputs = keras.Input((6,))
    shared = L.Dense(6, name="shared")
    norm = L.BatchNormalization(name="twice")
    read_twice = L.Dense(6, name="read_twice")(inputs)
    active = L.Dense(6, activation="relu", name="active")(inputs)
    h = shared(inputs) + shared(L.BatchNormalization(name="shared_norm")(shared(inputs)))
    h = h + norm(inputs) + norm(active) + read_twice
    h = h + L.BatchNormalization(name="second_reader")(read_twice)
    h = h + L.BatchNormalization(name="after_active")(active)
    h = h + L.BatchNormalization(name="in_training")(inputs, training=True)
    model = alive(keras.Model(inputs, h))
    why = {left.layer: left.why for left in bnk.plan_folding(model).left_alone}
    assert why["twice"] == "called 2 times in one forward"
    assert why["shared_norm"].startswith("before it: 'shared' (Dense) is called 3 times")
    assert why["second_reader"].startswith("before it: 'read_twice' (Dense) has other readers too")
    assert why["after_active"].startswith("before it: 'active' (Dense) has other readers too")
    assert why["in_training"].startswith("called with training=True")


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (L.Dense(4, activation="relu"), "ends in the activation relu"),
        (L.Dense(4, kernel_constraint="max_norm"), "its kernel has a constraint"),
        (type("Own", (L.Dense,), {"call": lambda self, x: L.Dense.call(self, x) + 1})(4), "own"),
    ],
)
def test_a_layer_that_cannot_take_it_in_says_why(layer, why):
    layer.name = "layer"
    model = small(layer, L.BatchNormalization(name="norm"), shape=(4,))
    assert why in bnk.plan_folding(model).left_alone[0].why


def test_a_padding_conv_after_a_batch_norm_is_left_unless_nothing_is_shifted(rng):
    model = small(L.BatchNormalization(name="n"), L.Conv2D(3, 3, padding="same"), shape=(6, 6, 2))
    assert "pads its input with zeros" in bnk.plan_folding(model).left_alone[0].why
    for weight in model.layers[0].weights:
        if weight.name in ("beta", "moving_mean"):
            weight.assign(np.zeros(weight.shape))
    x = rng.normal(size=(2, 6, 6, 2)).astype("float32")
    assert error(model(x), bnk.fold(model, x)(x)) < 1e-6


def test_remove_leaves_no_batch_norm_and_what_was_trained_can_be_trained():
    model, x = nested(), images()
    inputs = keras.Input((6, 5))
    h = L.BatchNormalization(axis=1, name="first")(inputs)
    h = L.BatchNormalization(trainable=False, name="frozen")(keras.ops.tanh(h))
    alone = alive(keras.Model(inputs, h))
    y = np.random.default_rng(0).normal(size=(4, 6, 5)).astype("float32")
    for original, example in ((model, x), (alone, y)):
        plain = bnk.remove(original, example)
        assert folded_away(plain) == []
        assert error(original(example), plain(example)) < 2e-6
    scale = plain.get_layer("first")
    assert (type(scale), scale.trainable, len(scale.trainable_weights)) == (
        L.EinsumDense,
        True,
        2,
    )
    assert not plain.get_layer("frozen").trainable


def test_a_negative_moving_variance_is_refused_by_name():
    model = sequential()
    model.get_layer("norm").moving_variance.assign(np.full(6, -2.0))
    with pytest.raises(ValueError, match="moving variance of 'norm' is -2 somewhere"):
        bnk.fold(model)


def test_what_is_not_the_same_is_refused_and_nothing_is_returned(monkeypatch):
    from bnkit.keras import kernels  # noqa: PLC0415  what is broken on purpose

    def wrong(layer, values, affine):
        return {**kernels.after_layer(layer, values, affine), "bias": affine.shift + 1}

    monkeypatch.setattr("bnkit.keras.folding.after_layer", wrong)
    with pytest.raises(SurgeryError, match=r"'first' \(Dense\) does not take its batch norm"):
        bnk.fold(sequential())
    monkeypatch.setattr("bnkit.keras.verification.EXACT", float("inf"))
    with pytest.raises(SurgeryError, match="does not compute the same: the error"):
        bnk.fold(sequential())


@pytest.mark.parametrize(
    ("model", "kind", "text"),
    [
        (torch.nn.Linear(2, 2), TypeError, "`model` is a Linear: pass a Keras model"),
        (keras.Sequential([L.Dense(2)]), ValueError, "is not built"),
        (type("Own", (keras.Model,), {})(), ValueError, "make it Functional"),
        (
            keras.Sequential([keras.Input((2,)), L.Dense(2)]),
            SurgeryError,
            "nothing to fold",
        ),
    ],
)
def test_what_cannot_be_folded_is_refused_in_a_sentence(model, kind, text):
    with pytest.raises(kind, match=text):
        bnk.fold(model)


def test_an_example_of_whole_numbers_has_to_be_passed():
    inputs = keras.Input((5,), dtype="int32")
    h = L.Dense(3)(L.Embedding(10, 4)(inputs))
    model = alive(keras.Model(inputs, L.BatchNormalization()(h)))
    with pytest.raises(ValueError, match="pass `example`"):
        bnk.fold(model)
    tokens = np.arange(10).reshape(2, 5)
    assert error(model(tokens), bnk.fold(model, tokens)(tokens)) < 1e-6


def test_the_copy_opens_where_bnkit_cannot_be_imported(tmp_path):
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    model, x = nested(), images(4)
    bnk.remove(model, x).save(tmp_path / "plain.keras")
    np.save(tmp_path / "x.npy", x)
    program = (
        "import sys; sys.modules['bnkit'] = None\n"
        "import keras, numpy as np\n"
        "model = keras.models.load_model('plain.keras')\n"
        "np.save('y.npy', keras.ops.convert_to_numpy(model(np.load('x.npy'))))\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert error(model(x), np.load(tmp_path / "y.npy")) < 2e-6


def test_a_layer_that_its_config_does_not_make_is_refused():
    class Forgetful(L.Dense):
        def get_config(self):
            return {**super().get_config(), "use_bias": False}

    forgetful = Forgetful(3, name="forgetful")
    model = small(L.Dense(4), L.BatchNormalization(), forgetful, shape=(5,))
    with pytest.raises(ValueError, match=r"'forgetful' \(Forgetful\) cannot be copied: its config"):
        bnk.fold(model)


def test_a_dropout_that_was_switched_off_has_no_seed_to_copy():
    model = sequential()
    model.get_layer("dropout").rate = 0.0
    assert bnk.fold(model).get_layer("dropout").rate == 0.0


def test_the_verbs_for_torch_refuse_a_keras_model_and_name_these():
    with pytest.raises(TypeError, match=r"is a Keras model.* use the verbs of bnkit\.keras"):
        bnkit.fold(sequential(), torch.zeros(2, 8))
    with pytest.raises(TypeError, match="is a Keras model"):
        bnkit.recalibrate(sequential(), torch.zeros(2, 8))
