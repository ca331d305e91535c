import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as L

import bnkit.keras as bnk
from bnkit.diagnosis.explanation import SECTIONS, explanation_of, manual
from bnkit.keras.kernels import array_of
from bnkit.keras.rules.table import FOLDER, HEAD, KINDS, RULES
from bnkit.report import write_diagnosis
from keras_models import alive, error, images, nested, sequential, state


def of_rule(found, rule):
    return [finding for finding in found.findings if finding.rule == rule]


def findings(model, rule, batches=None):
    return of_rule(bnk.diagnose(model, batches), rule)


def chain(*layers, shape, seed=0):
    return alive(keras.Sequential([keras.Input(shape), *layers]), seed)


def rows(rng, count=64, features=4, mean=0.0, std=1.0):
    return rng.normal(mean, std, size=(count, features)).astype("float32")


def fresh(*layers, shape):
    return keras.Sequential([keras.Input(shape), *layers])


# Structure


def test_a_bias_before_a_batch_norm_is_found_and_dropped_by_the_fix():
    model = chain(
        L.Conv2D(4, 3, name="conv"),
        L.MaxPooling2D(name="pool"),
        L.BatchNormalization(name="n"),
        shape=(8, 8, 3),
    )
    x = images(4)[:, :8, :8]
    (finding,) = findings(model, "cancelled-bias")
    assert finding.layers == ("conv", "n")
    assert finding.measured == {"parameters": 4}
    fixed = finding.automatic_fix(model)
    assert not fixed.get_layer("conv").use_bias
    assert error(model(x), fixed(x)) < 1e-6
    assert error(model(x, training=True), fixed(x, training=True)) < 1e-5


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(L.ReLU(), id="an activation changes it"),
        pytest.param(L.Dropout(0.5), id="dropout makes noise of it"),
        pytest.param(L.AveragePooling1D(2, padding="same"), id="zeros are averaged in"),
    ],
)
def test_a_bias_that_something_else_sees_is_left(between):
    model = chain(L.Conv1D(4, 3), between, L.BatchNormalization(), shape=(8, 3))
    assert findings(model, "cancelled-bias") == []


def test_a_bias_that_another_layer_reads_or_that_does_not_train_is_left():
    inputs = keras.Input((4,))
    h = L.Dense(4)(inputs)
    read_twice = keras.Model(inputs, L.BatchNormalization()(h) + h)
    assert findings(read_twice, "cancelled-bias") == []
    frozen = chain(L.Dense(4), L.BatchNormalization(trainable=False), shape=(3,))
    assert findings(frozen, "cancelled-bias") == []


@pytest.mark.parametrize(
    ("data_format", "axis", "wrong"),
    [
        ("channels_first", -1, {"axis": 3, "axis of the features": 1}),
        ("channels_last", 1, {"axis": 1, "axis of the features": 3}),
        ("channels_last", 3, None),
        ("channels_first", 1, None),
    ],
)
def test_an_axis_that_is_not_that_of_the_features(data_format, axis, wrong):
    shape = (3, 8, 8) if data_format == "channels_first" else (8, 8, 3)
    model = fresh(
        L.Conv2D(4, 3, data_format=data_format),
        L.ReLU(),
        L.BatchNormalization(axis=axis, name="n"),
        shape=shape,
    )
    found = findings(model, "wrong-axis")
    assert [finding.measured for finding in found] == ([wrong] if wrong else [])


def test_batch_norm_on_the_logits():
    inside = chain(L.Dense(3), L.BatchNormalization(name="n"), L.ReLU(), L.Dense(2), shape=(4,))
    assert findings(inside, "on-logits") == []
    for last in ([], [L.Softmax()], [L.Activation("softmax")]):
        model = chain(L.Dense(3), L.BatchNormalization(name="n"), *last, shape=(4,))
        (finding,) = findings(model, "on-logits")
        assert (finding.severity, finding.layers) == ("warning", ("n",))


def test_two_normalisations_in_a_row():
    model = chain(
        L.LayerNormalization(name="first"),
        L.Dropout(0.1),
        L.BatchNormalization(name="n"),
        shape=(4,),
    )
    (finding,) = findings(model, "two-normalisations")
    assert finding.layers == ("n", "first")
    apart = chain(L.LayerNormalization(), L.Dense(3), L.BatchNormalization(), shape=(4,))
    assert findings(apart, "two-normalisations") == []
    # which normalises weights, not values
    spectral = chain(L.SpectralNormalization(L.Dense(4)), L.BatchNormalization(), shape=(4,))
    assert findings(spectral, "two-normalisations") == []


def siamese():
    a, b = keras.Input((4,)), keras.Input((4,))
    norm = L.BatchNormalization(name="n")
    return keras.Model([a, b], norm(a) + norm(b))


@pytest.mark.parametrize(("shift", "severity"), [(0.0, "info"), (3.0, "warning")])
def test_one_batch_norm_on_several_inputs_is_measured(shift, severity, rng):
    batches = [((rows(rng), rows(rng, mean=shift)), 0) for _ in range(3)]
    (finding,) = findings(siamese(), "several-distributions", batches)
    assert finding.severity == severity
    assert finding.measured["calls in one forward"] == 2
    assert findings(siamese(), "several-distributions")[0].why.endswith("measured.")


def test_a_model_inside_that_is_called_twice_is_found_too():
    inner = keras.Sequential([keras.Input((4,)), L.BatchNormalization(name="n")], name="inner")
    a, b = keras.Input((4,)), keras.Input((4,))
    (finding,) = findings(keras.Model([a, b], inner(a) + inner(b)), "several-distributions")
    assert finding.layers == ("inner/n",)


def base():
    return keras.Sequential(
        [keras.Input((4,)), L.Dense(4), L.BatchNormalization(name="n")], name="base"
    )


def test_training_false_in_the_graph_is_found_and_frozen_by_the_fix(rng):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(2)(base()(inputs, training=False)))
    (finding,) = findings(model, "training-false-overridden")
    assert finding.layers == ("base/n",)
    fixed = finding.automatic_fix(model)
    for each, moves in ((model, True), (fixed, False)):
        each(rows(rng, mean=2.0), training=True)
        norm = each.get_layer("base").get_layer("n")
        assert bool(array_of(norm.moving_mean).any()) is moves
    assert findings(fixed, "training-false-overridden") == []


def test_training_true_in_the_graph_is_found():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.BatchNormalization(name="n")(inputs, training=True))
    (finding,) = findings(model, "training-true-in-inference")
    assert finding.layers == ("n",)
    assert findings(nested(), "training-true-in-inference") == []


def padded(rng, length=20, real=8):
    x = rng.normal(2, 1, size=(16, length, 3)).astype("float32")
    x[:, real:] = 0.0
    return x


def test_padding_enters_where_no_mask_reaches_the_batch_norm(rng):
    x = padded(rng)
    (finding,) = findings(
        fresh(L.BatchNormalization(name="n"), shape=(20, 3)), "padding-in-statistics", x
    )
    assert finding.severity == "warning"
    assert finding.measured["share of padding"] == pytest.approx(0.6)
    masked = fresh(L.Masking(0.0), L.BatchNormalization(), shape=(20, 3))
    assert findings(masked, "padding-in-statistics", x) == []


def test_batch_norms_to_fold_are_named_unless_the_model_is_compiled():
    (finding,) = findings(sequential(), "unfolded")
    assert finding.measured == {"batch norms": 1, "of": 1}
    compiled = sequential()
    compiled.compile(loss="mse")
    assert findings(compiled, "unfolded") == []


# State


def test_a_loop_that_never_passes_training_true_is_found(rng):
    model = fresh(L.BatchNormalization(name="n"), shape=(4,))
    assert findings(model, "never-updated")[0].severity == "info"
    model.layers[0].beta.assign(np.full(4, 0.1))
    (finding,) = findings(model, "never-updated", rows(rng, mean=3.0))
    assert finding.severity == "error"
    assert "training=True" in finding.why
    norm = finding.automatic_fix(model).layers[0]
    assert array_of(norm.moving_mean) == pytest.approx(3.0, abs=0.5)
    model.trainable = False
    assert findings(model, "never-updated")[0].severity == "warning"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("moving_variance", -2.0, "negative moving variances"),
        ("moving_mean", np.nan, "moving_mean"),
        ("gamma", np.inf, "gamma"),
    ],
)
def test_values_that_cannot_be_computed_with(name, value, said, rng):
    model = fresh(L.BatchNormalization(name="n"), shape=(4,))
    getattr(model.layers[0], name).assign([1.0, value, 1.0, 1.0])
    (finding,) = findings(model, "non-finite", rows(rng))
    assert (finding.severity, finding.measured) == ("error", {said: 1})
    assert (finding.automatic_fix is None) is (name == "gamma")
    if name != "gamma":
        assert findings(finding.automatic_fix(model), "non-finite", rows(rng)) == []


def test_inputs_that_are_not_finite_are_found_at_the_first_layer(rng):
    x = rows(rng)
    x[3, 1] = np.inf
    model = chain(L.BatchNormalization(name="a"), L.BatchNormalization(name="b"), shape=(4,))
    (finding,) = findings(model, "non-finite", x)
    assert finding.layers == ("a",)
    assert finding.measured == {"layers that are given such values": 2}


@pytest.mark.parametrize(("momentum", "kept"), [(0.1, 0.9), (0.01, 0.99), (0.0, 0.99)])
def test_a_momentum_of_torch_is_found_and_turned_round(momentum, kept):
    model = fresh(L.BatchNormalization(momentum=momentum, name="n"), shape=(4,))
    (finding,) = findings(model, "torch-momentum")
    assert finding.automatic_fix(model).layers[0].momentum == kept
    assert findings(fresh(L.BatchNormalization(momentum=0.5), shape=(4,)), "torch-momentum") == []


def test_half_precision_variables_are_found_and_made_float32():
    model = chain(L.BatchNormalization(dtype="float16", name="n"), shape=(4,))
    (finding,) = findings(model, "half-precision-statistics")
    norm = finding.automatic_fix(model).layers[0]
    assert {w.dtype for w in norm.weights} == {"float32"}
    np.testing.assert_array_equal(array_of(norm.gamma), array_of(model.layers[0].gamma))
    mixed = chain(L.BatchNormalization(dtype="mixed_float16"), shape=(4,))
    assert findings(mixed, "half-precision-statistics") == []


def test_averages_that_lag_are_found_and_measured_anew(rng):
    model = chain(L.BatchNormalization(name="n"), L.Dense(3), shape=(4,))
    x = rows(rng, 256, mean=5.0, std=2.0)
    found = bnk.diagnose(model, [x[:128], x[128:]])
    (stale,), (gap,) = of_rule(found, "stale-statistics"), of_rule(found, "train-eval-gap")
    assert stale.severity == gap.severity == "error"
    assert gap.causes == (stale,)
    good = found.fixed(model)
    again = bnk.diagnose(good, x)
    assert of_rule(again, "stale-statistics") + of_rule(again, "train-eval-gap") == []
    np.testing.assert_allclose(array_of(good.layers[0].moving_variance), x.var(0), rtol=1e-5)


def test_an_epsilon_that_outweighs_the_variance_is_made_smaller(rng):
    x = rows(rng, std=0.003)
    model = bnk.recalibrate(chain(L.BatchNormalization(name="n"), shape=(4,)), x, progress=False)
    (finding,) = findings(model, "large-eps", x)
    fixed = finding.automatic_fix(model)
    assert fixed.layers[0].epsilon == pytest.approx(9e-8, rel=0.5)
    assert error(model(x), fixed(x)) < 1e-5
    assert findings(model, "large-eps", rows(rng)) == []


# Training


def test_one_value_per_channel_is_an_error(rng):
    model = chain(L.BatchNormalization(name="n"), shape=(4,))
    (finding,) = findings(model, "one-value-per-channel", [rows(rng), rows(rng, 1)])
    assert finding.severity == "error"
    assert finding.measured == {"values per channel": 1, "mini-batch": 2}
    assert findings(model, "one-value-per-channel", [rows(rng), rows(rng, 2)]) == []


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="jax and TensorFlow compute it well")
@pytest.mark.parametrize(
    ("mean", "severity"), [(10.0, None), (1000.0, "warning"), (10_000.0, "error")]
)
def test_means_far_from_zero_lose_the_variance(mean, severity, rng):
    x = rows(rng, mean=mean)
    found = findings(chain(L.BatchNormalization(name="n"), shape=(4,)), "cancelled-variance", x)
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    held = bnk.recalibrate(chain(L.BatchNormalization(), shape=(4,)), x, progress=False)
    known = findings(held, "cancelled-variance")
    assert [finding.severity for finding in known] == ([severity] if severity else [])


def test_few_values_are_noisy(rng):
    model = chain(L.BatchNormalization(name="n"), shape=(4,))
    assert findings(model, "noisy-statistics", [rows(rng, 3)])[0].severity == "warning"
    assert findings(model, "noisy-statistics", [rows(rng, 64)]) == []


def test_a_flag_that_was_changed_after_compile():
    model = sequential()
    model.compile(optimizer="sgd", loss="mse")
    assert findings(model, "frozen-after-compile") == []
    model.get_layer("norm").trainable = False
    (finding,) = findings(model, "frozen-after-compile")
    assert finding.layers == ("norm",)
    model.compile(optimizer="sgd", loss="mse")
    assert findings(model, "frozen-after-compile") == []


def test_weight_decay_on_gamma_and_beta():
    model = sequential()
    optimizer = keras.optimizers.AdamW(learning_rate=0.01, weight_decay=0.1)
    model.compile(optimizer=optimizer, loss="mse")
    (finding,) = findings(model, "weight-decay")
    assert finding.measured == {
        "decayed": "gamma, beta",
        "half-life in steps": pytest.approx(np.log(2) / 0.001),
    }
    assert finding.severity == "warning"
    spared = keras.optimizers.AdamW(weight_decay=0.1)
    spared.exclude_from_weight_decay(var_names=["gamma", "beta"])
    model.compile(optimizer=spared, loss="mse")
    assert findings(model, "weight-decay") == []
    regularised = fresh(L.BatchNormalization(gamma_regularizer="l2"), shape=(4,))
    assert findings(regularised, "weight-decay")[0].measured == {"with a regularizer": "gamma"}


# The diagnosis


def test_the_model_stays_as_it_is_and_the_result_prints_and_is_plain_data(tmp_path):
    model = nested()
    before = state(model)
    found = bnk.diagnose(model, [images(8), images(8, seed=2)])
    assert state(model) == before
    assert found.batch_norms == 6
    assert "nested with 6 batch norm layers" in str(found)
    assert found.to_json()["findings"]
    assert found.to_sarif()["runs"][0]["results"]
    assert "stale-statistics" in write_diagnosis(found, tmp_path / "sick.html").read_text()


def test_a_healthy_model_has_no_warning(rng):
    model = keras.Sequential(
        [
            keras.Input((8,)),
            L.Dense(16, use_bias=False),
            L.BatchNormalization(),
            L.ReLU(),
            L.Dense(3),
        ]
    )
    x = rows(rng, 512, 8)
    good = bnk.recalibrate(model, x, progress=False)
    good.compile("adam", "mse")
    assert bnk.diagnose(good, [x[:256], x[256:]]).findings == ()


def test_all_fixes_together_leave_no_warning_that_can_be_fixed(rng):
    model = chain(
        L.Dense(6, name="d"),
        L.BatchNormalization(momentum=0.1, name="n"),
        L.ReLU(),
        L.Dense(3),
        shape=(4,),
    )
    x = rows(rng, 256, mean=3.0)
    fixed = bnk.diagnose(model, x).fixed(model, severity="info")
    again = bnk.diagnose(fixed, x)
    assert [f.rule for f in again.findings if f.automatic_fix] == []
    assert fixed.get_layer("n").momentum == 0.9
    assert not fixed.get_layer("d").use_bias


def test_a_model_that_fails_on_the_mini_batches_is_still_looked_at(rng):
    model = fresh(L.BatchNormalization(momentum=0.1), shape=(4,))
    found = bnk.diagnose(model, rows(rng, features=5))
    assert "the model fails on a mini-batch" in found.not_run[0]
    assert of_rule(found, "torch-momentum")


def test_rules_are_switched_off_by_name_and_by_layer():
    model = sequential()
    assert of_rule(bnk.diagnose(model, skip=["unfolded"]), "unfolded") == []
    assert of_rule(bnk.diagnose(model, skip=["unfolded:no*"]), "unfolded") == []
    with pytest.raises(ValueError, match="no rule is called 'folded'"):
        bnk.diagnose(model, skip=["folded"])
    with pytest.raises(ValueError, match="no layer of the model matches 'x'"):
        bnk.diagnose(model, skip=["unfolded:x"])


@pytest.mark.parametrize("wrong", [3, "text"])
def test_what_is_not_batches_is_refused(wrong):
    with pytest.raises(TypeError, match="`batches` is a"):
        bnk.diagnose(nested(), wrong)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.slug)
def test_a_rule_has_a_page_with_every_section(rule):
    found = explanation_of(rule)
    assert rule.summary.endswith(".")
    assert all(getattr(found, section) for section in SECTIONS)
    assert found.example.startswith("```diff")


def test_no_page_is_of_a_rule_that_is_gone_and_what_it_tells_to_call_is_there():
    assert {path.stem for path in FOLDER.glob("*.md")} == {rule.slug for rule in RULES}
    texts = "\n".join(path.read_text() for path in FOLDER.glob("*.md"))
    named = set(re.findall(r"bnkit\.keras\.(\w+)", texts))
    assert named <= set(bnk.__all__)


def test_the_docs_are_made_from_the_explanations():
    page = Path(__file__).parents[2] / "docs" / "keras-rules.md"
    assert page.read_text(encoding="utf-8") == manual(KINDS, HEAD)
