"""A Keras model with and without batch norm: the same beginning, Keras' own steps, the verdict."""

import dataclasses
import itertools
import json

import keras
import numpy as np
import pytest
import torch
from keras import layers as L

import bnkit
import bnkit.keras as bnk
from bnkit.experiments.metrics import ACCURACY, Metric
from bnkit.keras.batches import pairs_in
from bnkit.keras.comparing import plan_comparison
from bnkit.keras.files import save_model
from bnkit.keras.fitting import measured, measured_by_mini_batches
from bnkit.keras.kernels import array_of
from bnkit.keras.provenance import (
    keras_settings,
    model_fingerprint,
    values_of,
    with_keras_settings,
)
from bnkit.keras.settings import KerasSettings
from bnkit.keras.sides import without_batch_norms

pytestmark = pytest.mark.usefixtures("trials_here")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6)).astype("float32")
Y = (X[:, :3] + X[:, 3:]).argmax(1)
FEW = {"learning_rates": [0.1], "seeds": 1, "steps": 6, "evaluate_every": 3, "jobs": 1}


def net(*more, logits=True):
    return keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(8, activation="relu", name="first"),
            *more,
            L.Dense(8, activation="sigmoid", name="second"),
            L.Dense(3, activation=None if logits else "softmax", name="last"),
        ]
    )


def build():
    model = net(L.Dropout(0.5, name="dropout"))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    return model


def bare():
    return net()


def arrays():
    return (X[:100], Y[:100]), (X[100:], Y[100:])


def compared(build=build, data=arrays, **options):
    if "train" in options:  # which measures when it likes
        options = {"evaluate_every": 50, **options}
    return bnk.compare(build, data, **{**FEW, "progress": False, **options})


def planned(build=build, data=arrays, folder="unused", **options):
    chosen = {name: value for name, value in {**FEW, **options}.items() if name != "jobs"}
    return plan_comparison(build, data, settings=KerasSettings(**chosen), out=folder)


def test_both_sides_begin_with_the_same_values_and_seeds():
    plain, twin = (trial.experiment for trial in planned(seeds=1).trials)
    one, other = plain.network("plain", 0, None), twin.network("batch norm", 0, None)
    for layer in one.layers:
        twin_of = other.get_layer(layer.name)
        values = {v.path.rpartition("/")[2]: array_of(v) for v in twin_of.variables}
        for variable in layer.variables:
            name = variable.path.rpartition("/")[2]
            if name != "bias" or layer.name == "last":  # which batch norm takes the place of
                assert np.array_equal(array_of(variable), values[name])
    assert [type(layer).__name__ for layer in other.layers].count("BatchNormalization") == 2
    assert one.optimizer is not other.optimizer
    assert float(one.optimizer.learning_rate) == pytest.approx(0.02)


@pytest.mark.parametrize("side", ["plain", "batch norm"])
def test_a_trial_is_what_the_same_steps_of_keras_give(side):
    """The oracle is a loop by hand: the same seed, order, steps and evaluations."""
    found = next(t for t in compared(learning_rates=None).trials if t.side == side)

    def by_hand():
        keras.utils.set_random_seed(0)
        model = build()
        if side == "batch norm":
            arguments = {"optimizer": model.optimizer, "loss": model.loss, "metrics": ["accuracy"]}
            keras.utils.set_random_seed(0)
            model = bnk.add(model)
            model.compile(**arguments)
        keras.utils.set_random_seed(0)
        order = np.random.default_rng(0)
        losses, values, step = [], [], 0
        while step < 6:
            chosen = order.permutation(100)
            for start in range(0, 100, 32):
                rows, step = chosen[start : start + 32], step + 1
                logs = model.train_on_batch(X[rows], Y[rows], return_dict=True)
                if step % 3 == 0:
                    losses.append(logs["loss"])
                    outputs = array_of(model(X[100:], training=False))  # evaluate moves seeds
                    values.append((outputs.argmax(1) == Y[100:]).mean())
                    model.reset_metrics()
                if step == 6:
                    break
        return losses, values

    losses, values = by_hand()
    assert found.outcome == "finished", found.reason
    assert found.curve.steps == (3, 6)
    np.testing.assert_allclose(found.curve.loss, losses, rtol=1e-6)
    np.testing.assert_allclose(found.curve.metric, values, atol=1e-7)


def test_the_training_mode_is_measured_by_the_statistics_of_the_mini_batches():
    keras.utils.set_random_seed(1)
    model = bnk.add(net())
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    before = [array_of(v) for v in model.weights]
    data = (X[100:], Y[100:])
    outputs = array_of(model(X[100:], training=True))  # which moves the averages
    for variable, value in zip(model.weights, before, strict=True):
        variable.assign(value)
    share = float((outputs.argmax(1) == Y[100:]).mean())
    assert measured_by_mini_batches(model, data, "accuracy") == pytest.approx(share)
    for variable, value in zip(model.weights, before, strict=True):
        assert np.array_equal(array_of(variable), value)
    usual = model.evaluate(*data, verbose=0, return_dict=True)
    assert measured(model, data, "accuracy") == pytest.approx(usual["accuracy"])
    assert measured(model, data, "loss") == pytest.approx(usual["loss"], rel=1e-5)


def test_a_plain_model_has_one_mode_and_its_twin_two():
    plain, twin = compared(steps=3).trials
    assert plain.curve.training_mode_metric == plain.curve.metric
    assert len(twin.curve.training_mode_metric) == 1
    (alone, _) = compared(steps=3, training_mode_accuracy=False).trials
    assert alone.curve.training_mode_metric == ()


def test_lagging_averages_are_told_in_the_table():
    found = compared(bare, steps=3)
    plain, twin = found.trials
    curve = dataclasses.replace(twin.curve, metric=(0.5,), training_mode_metric=(0.9,))
    lagging = dataclasses.replace(
        found, trials=(plain, dataclasses.replace(twin, curve=curve, metric=0.5))
    )
    told = "batch norm ends at 90.0%, and at 50.0% by its moving averages, which lag: `recalibrate`"
    assert told in str(lagging)
    assert "moving averages" not in str(compared(bare, training_mode_accuracy=False))


def test_results_are_kept_and_taken_again(tmp_path):
    first = compared(out=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    again = compared(out=tmp_path)
    assert again.trials == first.trials
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == before


def keys(folder="unused", **options):
    return {trial.key for trial in planned(folder=folder, **options).trials}


def test_what_decides_a_result_is_in_its_key():
    usual = keys()
    assert keys(target=0.5, margin=0.1) == usual
    keras.layers.Dense(1)  # counts names on
    assert keys() == usual
    for change in ({"batch_size": 16}, {"shuffle": False}, {"momentum": 0.9}, {"steps": 7}):
        assert not usual & keys(**change) or change == {"momentum": 0.9}
    assert len(usual & keys(momentum=0.9)) == 1  # the plain side
    assert not keys(build=bare, loss="sparse_categorical_crossentropy") & keys(build=bare)


def test_a_fingerprint_sees_structure_and_values_but_no_names():
    one, other = net(), net()
    assert model_fingerprint(one) != model_fingerprint(other)  # other values
    other.set_weights(one.get_weights())
    assert model_fingerprint(one) == model_fingerprint(other)
    other.layers[1].activation = keras.activations.tanh
    assert model_fingerprint(one) != model_fingerprint(other)


def with_schedule():
    model = net()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 2, 0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(schedule), loss)
    return model


def test_a_compiled_model_keeps_its_optimizer_and_schedule():
    found = compared(with_schedule, learning_rates=None)
    assert found.learning_rates == (pytest.approx(0.05),)
    assert found.settings["optimizer"] == "SGD"
    with pytest.raises(ValueError, match="has a schedule: leave one out"):
        compared(with_schedule)


def test_a_model_that_is_not_compiled_is_by_the_settings():
    found = compared(bare, optimizer=keras.optimizers.Adam, learning_rates=[0.01, 0.1])
    assert found.metric == ACCURACY
    assert found.learning_rates == (0.01, 0.1)
    rates = {t.learning_rate: t.curve.loss[-1] for t in found.trials if t.side == "plain"}
    assert rates[0.01] != rates[0.1]


def regression():
    model = keras.Sequential([keras.Input((6,)), L.Dense(8, activation="relu"), L.Dense(1)])
    model.compile("sgd", "mse")
    return model


def numbers():
    return (X[:100], X[:100, 0]), (X[100:], X[100:, 0])


def test_regression_is_judged_by_its_loss():
    found = compared(regression, numbers)
    assert found.metric == Metric("loss", higher_is_better=False)
    assert all(trial.metric > 0 for trial in found.trials)


def two_metrics():
    model = net(logits=False)
    second = keras.metrics.SparseTopKCategoricalAccuracy(2, name="second_accuracy")
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy", second])
    return model


def test_the_judged_metric_is_named_where_there_are_several():
    with pytest.raises(ValueError, match="say which is judged, as in metric='accuracy'"):
        compared(two_metrics)
    assert compared(two_metrics, metric="second_accuracy").metric.percent
    with pytest.raises(ValueError, match="`metric` is 'f1', and the model reports"):
        compared(two_metrics, metric="f1")


def normalised():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(8, use_bias=False, name="first"),
            L.BatchNormalization(name="norm"),
            L.ReLU(name="relu"),
            L.Dense(3, name="last"),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_a_model_that_brings_batch_norm_is_compared_with_itself_without():
    plain = without_batch_norms(normalised())
    assert [layer.name for layer in plain.layers] == ["first", "relu", "last"]
    assert plain.layers[0].use_bias
    found = compared(normalised)
    sizes = {trial.side: trial.parameters for trial in found.trials}
    assert sizes == {"plain": 6 * 8 + 8 + 27, "batch norm": 6 * 8 + 16 + 27}


def wider(model):
    return keras.Sequential([*model.layers[:-1], L.Dense(4), L.Dense(3)])


def test_other_sides():
    found = compared(sides=["plain", "batch", "group", "layer", wider])
    assert [t.outcome for t in found.trials] == ["finished"] * 5
    assert found.sides == ("plain", "batch norm", "group norm", "layer norm", "wider")
    with pytest.raises(Exception, match="sample has one value: choose 'group' or 'layer'"):
        compared(sides=["plain", "instance"])
    with pytest.raises(Exception, match="Keras has no ghost batch norm"):
        compared(sides=["plain", "ghost"])


def test_a_file_is_drawn_anew_for_each_seed_but_for_frozen_layers(tmp_path):
    model = build()
    model.layers[0].trainable = False
    model.compile("adam", model.loss)
    path = tmp_path / "net.keras"
    save_model(model, path)
    experiment = planned(str(path), seeds=2, learning_rates=None).trials[0].experiment
    zero, one = (experiment.built(seed).model for seed in (0, 1))
    assert np.array_equal(array_of(zero.layers[0].kernel), array_of(model.layers[0].kernel))
    assert not zero.layers[0].trainable
    assert not np.array_equal(array_of(zero.layers[-1].kernel), array_of(one.layers[-1].kernel))
    assert values_of(experiment.built(0).model) == values_of(zero)
    found = compared(path, learning_rates=None)
    assert [t.outcome for t in found.trials] == ["finished"] * 2
    assert found.settings["optimizer"] == "Adam"


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.last = L.Dense(8, name="first"), L.Dense(3, name="last")

    def call(self, x):
        return self.last(keras.ops.relu(self.first(x)))


def test_subclassed_and_unbuilt_models_are_built_on_the_data():
    assert [t.outcome for t in compared(Own).trials] == ["finished"] * 2
    unbuilt = lambda: keras.Sequential([L.Dense(8, activation="relu"), L.Dense(3)])  # noqa: E731
    assert [t.outcome for t in compared(unbuilt).trials] == ["finished"] * 2


def fitted(model, trial):
    (x, y), (x_test, y_test) = trial.loaders
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(trial.learning_rate), loss, metrics=["accuracy"])

    def report(epoch, logs):
        share = model.evaluate(x_test, y_test, verbose=0)[1]
        if trial.report(epoch + 1, loss=logs["loss"], accuracy=share):
            model.stop_training = True

    model.fit(
        x, y, epochs=4, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=report)]
    )


def test_a_loop_of_ones_own_may_fit():
    found = compared(bare, train=fitted, steps=3)
    assert [t.curve.steps for t in found.trials] == [(1, 2, 3)] * 2
    assert found.metric.name == "accuracy"
    swept = compared(bare, train=by_width, sweep={"width": [1, 2]}, learning_rates=[0.1])
    assert swept.activations == ("width=1", "width=2")


def by_width(_model, trial):
    trial.report(1, accuracy=trial.settings["width"] / 10 + 0 * trial.learning_rate)


def by_loss(_model, trial):
    trial.report(1, accuracy=len(trial.settings["loss"].__name__) / 100 + 0 * trial.learning_rate)


def hinge(true, predicted):
    return keras.losses.hinge(true, predicted)


def test_a_swept_function_is_known_by_its_source_and_more_may_join(tmp_path):
    first = compared(bare, train=by_loss, sweep={"loss": [hinge]}, out=tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    more = compared(bare, train=by_loss, sweep={"loss": [hinge, len]}, out=tmp_path)
    assert more.activations == ("loss=hinge", "loss=len")
    assert more.trials[:2] == first.trials
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_target_may_be_the_best_of_the_plain_side():
    assert compared(target="best").target == compared().target
    assert compared(target="best").own_target


def test_the_version_is_in_the_key_and_shown():
    one, other = (compared(version=text) for text in ("1", "2"))
    assert not {t.key for t in one.trials} & {t.key for t in other.trials}
    assert one.settings["version"] == "1"


def test_a_loop_that_reports_nothing_is_told():
    with pytest.raises(ValueError, match="`train` has reported nothing with the plain model"):
        compared(bare, train=print)


def exploding():
    model = keras.Sequential([keras.Input((6,)), L.Dense(8, activation="relu"), L.Dense(1)])
    model.compile(keras.optimizers.SGD(1e18), "mse")
    return model


def test_a_run_that_diverges_is_a_result():
    found = compared(exploding, numbers, learning_rates=None, steps=12)
    plain = found.trials[0]
    assert plain.outcome == "diverged"
    assert "the training loss was" in plain.reason


def test_data_as_keras_users_have_them():
    class Two(keras.utils.PyDataset):
        ended = 0

        def __len__(self):
            return 2

        def __getitem__(self, number):
            return X[number : number + 3], Y[number : number + 3]

        def on_epoch_end(self):
            self.ended += 1

    dataset = Two()
    assert [len(y) for _, y, _ in pairs_in(dataset, 5)] == [3, 3]
    assert dataset.ended == 1
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=50
    )
    assert [type(x) for x, _, _ in pairs_in(loader, 5)] == [np.ndarray] * 3
    weighted = [(x["a"].shape, w.sum()) for x, _, w in pairs_in(({"a": X}, Y, Y * 0 + 1), 100)]
    assert weighted == [((100, 6), 100), ((20, 6), 20)]
    ordered = [y.tolist() for _, y, _ in pairs_in((X, np.arange(120)), 7)]
    drawn = pairs_in((X, np.arange(120)), 7, order=np.random.default_rng(0))
    assert sorted(itertools.chain(*(y.tolist() for _, y, _ in drawn))) == [*range(120)]
    assert list(itertools.chain(*ordered)) == [*range(120)]


def test_mini_batches_of_a_dataset_train_too():
    batches = lambda: ([(X[:50], Y[:50]), (X[50:100], Y[50:100])], [(X[100:], Y[100:])])  # noqa: E731
    found = compared(data=batches, epochs=2)
    assert [t.steps for t in found.trials] == [4, 4]


def test_the_settings_of_keras_hold_in_every_process():
    here = keras_settings()
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.config.set_image_data_format("channels_first")
    there = keras_settings()
    keras.config.set_dtype_policy(here["dtype_policy"])
    keras.config.set_image_data_format(here["image_data_format"])
    with with_keras_settings(there):
        assert L.Dense(2).dtype_policy.name == "mixed_bfloat16"
        assert L.Conv2D(2, 1).data_format == "channels_first"
    assert keras_settings() == here


def test_the_program_keeps_its_own_random_numbers():
    np.random.seed(5)  # noqa: NPY002  the generator that is to stay
    wanted = np.random.random()  # noqa: NPY002  as above
    np.random.seed(5)  # noqa: NPY002  as above
    compared(steps=1)
    assert np.random.random() == wanted  # noqa: NPY002  as above


class OwnStep(keras.Model):
    def train_step(self, *_):
        return {}


def used():
    model = build()
    model.fit(X, Y, verbose=0)
    return model


def unrepeatable():
    keras.utils.set_random_seed(next(COUNT))
    return bare()


COUNT = itertools.count(100)
SHARED = net()
WRONG = {
    "a model": (lambda: compared(SHARED), TypeError, "`build` is a Sequential: pass a function"),
    "a number": (lambda: compared(3), TypeError, "`build` is a int: pass a function"),
    "no model": (lambda: compared(dict), TypeError, "`build` returned a dict: it must return a"),
    "no data": (lambda: compared(data=None), TypeError, "`data` is missing: pass it, or a loop"),
    "arrays": (lambda: compared(data=arrays()), TypeError, "`data` is a tuple: pass the name of"),
    "one part": (lambda: compared(data=lambda: X), TypeError, "`data` returned a ndarray: it must"),
    "no targets": (
        lambda: compared(data=lambda: (X, X)),
        ValueError,
        r"`data` holds a ndarray for \(inputs, targets\): give arrays",
    ),
    "lengths": (
        lambda: compared(data=lambda: ((X, Y[:7]), (X, Y))),
        ValueError,
        "have 7 and 120 rows: there must be one row",
    ),
    "used up": (
        lambda: compared(data=lambda: (iter([(X, Y)]), (X, Y))),
        ValueError,
        "training batches of `data` are an iterator",
    ),
    "empty": (lambda: compared(data=lambda: ([], [])), ValueError, "training data are empty"),
    "not alike": (lambda: compared(unrepeatable), ValueError, "`build` gives another model when"),
    "the same": (lambda: compared(lambda: SHARED), ValueError, "`build` gives another model when"),
    "other data": (
        lambda: compared(data=lambda: ((X + next(COUNT), Y), (X, Y))),
        ValueError,
        "`data` gives other batches when",
    ),
    "own step": (lambda: compared(OwnStep), ValueError, "OwnStep, which has a `train_step` of its"),
    "used": (lambda: compared(used), ValueError, "has been used already: make a new one"),
    "loss": (lambda: compared(loss="mse"), ValueError, "`loss` is 'mse', and the model is compile"),
    "optimizer": (
        lambda: compared(bare, optimizer=keras.optimizers.Adam()),
        TypeError,
        "`optimizer` is a Adam that all trials would share",
    ),
    "swept, without a loop": (
        lambda: compared(sweep={"rate": [1, 2]}),
        ValueError,
        "`sweep` has 'rate', and there is no `train` that reads",
    ),
    "boards that would vanish": (
        lambda: compared(log="tensorboard"),
        ValueError,
        "`log` is 'tensorboard', which writes beside the results: pass `out`",
    ),
    "an optimizer for a loop": (
        lambda: compared(bare, train=fitted, optimizer="adam"),
        ValueError,
        "`optimizer` is 'adam', and `train` is your own: leave it out",
    ),
    "how often a loop measures": (
        lambda: compared(train=fitted, evaluate_every=7),
        ValueError,
        "`evaluate_every` is 7, and `train` is your own: leave it out",
    ),
    "the size of what is cut": (
        lambda: compared(data=lambda: ([(X, Y)], (X, Y)), batch_size=16),
        ValueError,
        "`batch_size` is 16, and the training data are mini-batches: leave it out",
    ),
    "a value that no run takes": (
        lambda: compared(bare, train=by_width, sweep={"width": [1, "wide"]}),
        ValueError,
        "`train` fails with the plain model: TypeError",
    ),
    "a target": (
        lambda: compared(target=1.5),
        ValueError,
        "`target` is 1.5: pass a number above 0 and up to 1",
    ),
    "steps": (lambda: compared(steps=0), ValueError, "`steps` is 0: pass an integer"),
    "option": (lambda: compared(clip=1.0), TypeError, "compare: unknown option 'clip'"),
    "nothing to normalise": (
        lambda: compared(lambda: keras.Sequential([keras.Input((6,)), L.Dense(3)])),
        Exception,
        "nothing to normalise",
    ),
    "a shape": (lambda: compared(data="digits"), ValueError, r"takes inputs of shape \(6,\)"),
    "targets": (
        lambda: compared(data=lambda: ((X, Y + 7), (X, Y))),
        ValueError,
        "a training step of the plain model fails",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_compared_is_told_before_anything_runs(name):
    call, kind, text = WRONG[name]
    with pytest.raises(kind, match=text):
        call()


def test_bnkit_compare_sends_keras_models_here():
    with pytest.raises(TypeError, match=r"returned a Keras model \(Sequential\): use bnkit.keras"):
        bnkit.compare(build, "digits")


@pytest.mark.usefixtures("in_processes")
def test_trials_run_in_processes_and_the_report_is_written(tmp_path):
    found = compared(out=tmp_path)
    assert [t.outcome for t in found.trials] == ["finished"] * 2, found.trials
    here = planned(folder=tmp_path / "other").trials
    for there, trial in zip(found.trials, here, strict=True):
        assert there.key == trial.key
        np.testing.assert_allclose(there.curve.loss, trial.run().curve.loss, rtol=1e-5)
    page = bnkit.write_report(found, tmp_path)
    assert "bnkit.keras" in page.read_text()
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["settings"]["framework"].startswith(f"Keras {keras.__version__}")
