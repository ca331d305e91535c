"""Random Functional models, with branches, sums, sharing and nesting, through the verbs."""

import os

import keras
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers as L

import bnkit.keras as bnk
from bnkit.keras.folding import survey
from keras_models import alive, error, state

FUZZ = os.environ.get("BNKIT_FUZZ_KERAS")
SIZE, CHANNELS = 6, 4


class Growing:
    """A Functional model that grows by layers of random options."""

    def __init__(self, seed):
        keras.utils.set_random_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.inputs = keras.Input((SIZE, SIZE, 3))
        self.h, self.past, self.shared = self.inputs, [], {}

    def any_of(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def grow(self, kind):
        self.h = getattr(self, kind)(self.h)
        self.past.append(self.h)

    def conv(self, h):
        padding = self.any_of("same", "valid") if h.shape[1] > 3 else "same"
        options = {"use_bias": self.any_of(True, False), "activation": self.any_of(None, "relu")}
        return L.Conv2D(CHANNELS, self.any_of(1, 3), padding=padding, **options)(h)

    def depthwise(self, h):
        return L.DepthwiseConv2D(1, depth_multiplier=self.any_of(1, 2))(h)

    def separable(self, h):
        return L.SeparableConv2D(CHANNELS, 3, padding="same")(h)

    def transposed(self, h):
        return L.Conv2DTranspose(CHANNELS, 1)(h)

    def norm(self, h):
        return L.BatchNormalization(
            center=self.any_of(True, False), scale=self.any_of(True, False)
        )(h)

    def active(self, h):
        return self.any_of(L.ReLU(), keras.ops.gelu, L.Activation("tanh"))(h)

    def passing(self, h):
        return (
            self.any_of(L.Dropout(0.3), L.AveragePooling2D(2, 1), L.UpSampling2D(1))(h)
            if (h.shape[1] > 2)
            else h * 1.0
        )

    def concat(self, h):
        alike = [p for p in self.past if p.shape[1] == h.shape[1] and p.shape[-1] < 9]
        return L.Concatenate()([h, self.any_of(*alike)]) if alike else h * 1.0

    def total(self, h):
        alike = [p for p in self.past if p.shape == h.shape]
        return h + self.any_of(*alike) if alike else h * 2.0

    def again(self, h):
        return self.shared.setdefault(h.shape[-1], L.Conv2D(h.shape[-1], 1))(h)

    def inner(self, h):
        inputs = keras.Input(h.shape[1:])
        inside = L.BatchNormalization()(L.Conv2D(CHANNELS, 1)(inputs))
        return keras.Model(inputs, L.ReLU()(inside))(h)

    def model(self):
        last = self.any_of(L.GlobalAveragePooling2D(), L.Flatten())(self.h)
        outputs = [L.Dense(3)(last)]
        if self.any_of(True, False):
            outputs.append(L.GlobalMaxPooling2D()(self.any_of(*self.past)))
        return alive(keras.Model(self.inputs, outputs))


KINDS = "conv depthwise separable transposed norm norm active passing concat total again inner"


def network(seed, kinds):
    growing = Growing(seed)
    for kind in kinds:
        growing.grow(kind)
    return growing.model()


def images():
    return np.random.default_rng(0).normal(size=(6, SIZE, SIZE, 3)).astype("float32")


def norms(model):
    return sum(isinstance(layer, L.BatchNormalization) for layer in model._flatten_layers())


SETTINGS = settings(
    max_examples=int(FUZZ or 20),
    deadline=None,
    derandomize=FUZZ is None,
    suppress_health_check=[HealthCheck.too_slow],
)
NETWORKS = given(
    st.integers(0, 2**31), st.lists(st.sampled_from(KINDS.split()), min_size=2, max_size=10)
)


@SETTINGS
@NETWORKS
def test_every_verb_keeps_its_promise(seed, kinds):
    model = network(seed, kinds)
    x, before = images(), state(model)
    folds, adds = survey(model).edits, bnk.plan_addition(model).edits
    if folds:
        small = bnk.fold(model, x)
        assert norms(small) == norms(model) - len(folds)
        assert error(model(x), small(x)) < 1e-4
        plain = bnk.remove(model, x)
        assert norms(plain) == 0 or norms(plain) < norms(small)
        assert error(model(x), plain(x)) < 1e-4
    if adds:
        inserted = bnk.insert(model, [x[:4], x[4:]])
        assert norms(inserted) == norms(model) + len(adds)
        assert error(model(x), inserted(x)) < 1e-4
        assert error(model(x), bnk.fold(inserted, x)(x)) < 1e-4
        assert norms(bnk.add(model)) == norms(inserted)
    assert state(model) == before


@SETTINGS
@NETWORKS
def test_recalibration_is_of_all_the_data_and_the_doctor_looks_at_any(seed, kinds):
    model = network(seed, kinds)
    x, before = images(), state(model)
    assert bnk.diagnose(model, [x[:4], x[4:]]).batch_norms == norms(model)
    if norms(model):
        whole, parts = (
            bnk.recalibrate(model, batches, estimator="layer_by_layer", progress=False)
            for batches in (x, [x[:1], x[1:]])
        )
        assert error(whole(x), parts(x)) < 1e-3
    assert state(model) == before
