import keras
import numpy as np
import pytest
from keras import layers as L

import bnkit.keras as bnk
from bnkit.keras.kernels import array_of
from bnkit.surgery import SurgeryError
from keras_models import alive, error, images, state


class Block(keras.Layer):
    """A residual block of the user's own."""

    def __init__(self, channels, **options):
        super().__init__(**options)
        self.conv = L.Conv2D(channels, 3, padding="same", name="conv")
        self.norm = L.BatchNormalization(name="norm")
        self.shortcut = L.Conv2D(channels, 1, name="shortcut")

    def call(self, x, training=None):
        return keras.ops.relu(self.norm(self.conv(x), training=training)) + self.shortcut(x)


class Net(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.first, self.second = Block(4, name="first"), Block(5, name="second")
        self.drop, self.head = L.Dropout(0.5, name="drop"), L.Dense(3, name="head")

    def call(self, x, training=None):
        h = self.second(self.first(x, training=training), training=training)
        return self.head(self.drop(keras.ops.mean(h, (1, 2)), training=training))


def net():
    model = Net()
    model(images(2))
    return alive(model)


def test_a_subclassed_model_becomes_functional_and_is_folded():
    model, x = net(), images(8)
    before = state(model)
    functional = bnk.as_functional(model, x)
    assert state(model) == before
    assert error(model(x), functional(x)) == 0
    assert "__call__" not in vars(Block)
    assert {"first_conv", "second_conv", "drop", "head"} <= {x.name for x in functional.layers}
    small = bnk.fold(functional, x)
    assert not [layer for layer in small.layers if isinstance(layer, L.BatchNormalization)]
    assert error(model(x), small(x)) < 2e-6


def test_it_trains_as_the_subclassed_model_does():
    model, x = net(), images(8)
    model.drop.rate = 0.0
    functional = bnk.as_functional(model, x)
    for each in (model, functional):
        each(x, training=True)
    moved = [layer for layer in functional.layers if isinstance(layer, L.BatchNormalization)]
    for ours, theirs in zip((model.first.norm, model.second.norm), moved, strict=True):
        np.testing.assert_array_equal(array_of(ours.moving_mean), array_of(theirs.moving_mean))


def test_several_arguments_and_outputs(rng):
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = L.Dense(2), L.Dense(2)

        def call(self, x, y):
            return {"sum": self.a(x) + self.b(y), "x": self.a(x)}

    x, y = (rng.normal(size=(5, 3)).astype("float32") for _ in range(2))
    model = Two()
    functional = bnk.as_functional(model, (x, y))
    assert set(functional([x, y])) == {"sum", "x"}
    assert error(model(x, y)["sum"], functional([x, y])["sum"]) == 0


def of(call):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = L.BatchNormalization(name="norm")

    Own.call = call
    return Own()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda self, x: self.norm(x, training=False),
            r"'norm' \(BatchNormalization\) is called with training=False",
        ),
        (
            lambda self, x: self.norm(x) if float(keras.ops.sum(x)) > 0 else x,
            "Own.call cannot be followed on symbolic inputs",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_with_what_to_do(call, said):
    model = of(call)
    model(np.ones((4, 3), "float32"))
    before = state(model)
    with pytest.raises(SurgeryError, match=said):
        bnk.as_functional(model, np.ones((4, 3), "float32"))
    assert state(model) == before


def test_what_the_layers_do_not_show_is_refused():
    def call(self, x):
        symbolic = isinstance(x, keras.KerasTensor)
        return self.norm(x) if symbolic else self.norm(x) + 1.0

    with pytest.raises(SurgeryError, match=r"does something that its layers and keras\.ops do not"):
        bnk.as_functional(of(call), np.ones((4, 3), "float32"))
    with pytest.raises(TypeError, match="`model` is a Dense: pass a Keras model"):
        bnk.as_functional(L.Dense(2), np.ones((4, 3)))
