import keras
import numpy as np
import pytest
from keras import layers as L

import bnkit.keras as bnk
from bnkit.keras.graph import graphs_of
from bnkit.keras.kernels import array_of
from bnkit.keras.observation import calling_instead
from bnkit.keras.rebuilding import rebuilt
from keras_models import alive, error, sequential, state

TOKENS = np.array([[1, 2, 3, 0, 0], [4, 1, 0, 0, 0]])


def masked_sequential():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            L.Embedding(5, 4, mask_zero=True, name="embedding"),
            L.Dense(4, name="dense"),
            L.BatchNormalization(name="n"),
            L.LSTM(3, name="lstm"),
        ]
    )


def masked_functional():
    inputs = keras.Input((5,), dtype="int32")
    h = L.Embedding(5, 4, mask_zero=True, name="embedding")(inputs)
    both = L.Concatenate(name="both")([h, L.Dense(2, name="dense")(h)])
    return keras.Model(inputs, L.LSTM(3, name="lstm")(L.BatchNormalization(name="n")(both)))


@pytest.mark.parametrize("make", [masked_sequential, masked_functional])
def test_masks_go_where_they_went(make):
    model = alive(make())
    before = state(model)
    copy = rebuilt(model, {})
    assert state(model) == before
    assert type(copy) is type(model)
    assert [layer.name for layer in copy.layers][1:] == [layer.name for layer in model.layers][1:]
    assert error(model(TOKENS), copy(TOKENS)) == 0
    for each in (model, copy):
        each(TOKENS, training=True)
    norm, copied = (each.get_layer("n") for each in (model, copy))
    np.testing.assert_array_equal(array_of(norm.moving_mean), array_of(copied.moving_mean))


def test_what_makes_masks_is_no_call_of_the_graph():
    (graph,) = graphs_of(masked_functional())
    assert [call.path for call in graph.calls] == ["embedding", "dense", "both", "n", "lstm"]
    assert [len(call.inputs) for call in graph.calls] == [1, 1, 2, 1, 1]


def test_a_mask_of_the_users_own_is_handed_on():
    x, mask = keras.Input((5, 4)), keras.Input((5,), dtype="bool")
    model = keras.Model([x, mask], L.BatchNormalization(name="n")(x, mask=mask))
    copy = rebuilt(model, {})
    values = np.arange(40.0).reshape(2, 5, 4)
    copy([values, TOKENS > 0], training=True)
    real = values[TOKENS > 0]
    moving = array_of(copy.get_layer("n").moving_mean)
    np.testing.assert_allclose(moving, 0.01 * real.mean(0), rtol=1e-5)


def test_a_plan_for_another_model_is_refused():
    plan = bnk.plan_folding(sequential())
    with pytest.raises(ValueError, match="is not the model that was planned for, whose layers"):
        plan.apply(sequential())


@pytest.mark.parametrize("verb", [bnk.fold, bnk.diagnose, bnk.add])
def test_a_layer_with_a_call_set_on_it_is_refused_and_keeps_it(verb):
    model = sequential()
    layer = model.get_layer("first")
    own = layer.call = lambda x: x[:, :6]
    with pytest.raises(ValueError, match=r"'first' \(Dense\) has a `call` that was set on it"):
        verb(model)
    assert layer.call is own


def test_what_is_called_instead_ends_with_what_was_there():
    layer, x = L.ReLU(), keras.ops.array([2.0])
    own = layer.call = lambda x: x * 3
    with (
        calling_instead({layer: lambda call, x, _: call(x) + 1}),
        calling_instead({layer: lambda call, x, _: call(x) * 2}),
    ):
        assert float(layer(x)[0]) == 14
    assert layer.call is own
