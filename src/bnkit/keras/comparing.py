"""`compare`: train a Keras model with and without batch norm, paired, and say what it changes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import keras

from bnkit.experiments.experiment import check_data
from bnkit.experiments.metrics import Metric
from bnkit.experiments.own_loop import OwnLoop
from bnkit.experiments.provenance import batch_fingerprint, fingerprint
from bnkit.experiments.rehearsal import (
    Rehearsed,
    check_portable,
    check_read,
    check_same_reports,
    run_rehearsal,
)
from bnkit.experiments.results import Side, TrialResult
from bnkit.experiments.sides import name_of
from bnkit.experiments.store import Store
from bnkit.experiments.summary import Comparison
from bnkit.experiments.sweep import Sweep, planned_and_run, target_of
from bnkit.experiments.trial_logs import Log
from bnkit.experiments.verdict import LOOKS
from bnkit.extras import require
from bnkit.keras.batches import pairs_in
from bnkit.keras.compiling import identity_of, metric_of
from bnkit.keras.experiment import Build, KerasExperiment
from bnkit.keras.provenance import keras_settings, keras_versions, model_fingerprint, values_of
from bnkit.keras.settings import OF_THE_BUILT_IN_LOOP, KerasSettings
from bnkit.keras.sources import PARTS, named_source, own_source
from bnkit.keras.trials import KerasTrial
from bnkit.observation import preserved_random_state
from bnkit.options import parameters_of, showing
from bnkit.references import blaming, reference_to
from bnkit.source_code import own_sources, source_of


@showing(parameters_of(KerasSettings))
def compare(
    build: Build | str,
    data: Callable[[], Any] | str | None = None,
    *,
    train: Callable[..., object] | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    version: str = "",
    data_folder: Path | str | None = None,
    out: Path | str | None = None,
    jobs: int | None = None,
    progress: bool = True,
    trial_timeout: float | None = None,
    executor: Executor | None = None,
    code_by_value: bool = False,
    log: Log | None = None,
    **settings: Any,
) -> Comparison:
    """Return what batch norm changes for a Keras model, over learning rates and seeds.

    `build()` returns the model without batch norm, compiled as it is to be trained, or not
    compiled; or it is a `.keras` file, whose model is drawn anew for each seed, but for layers
    without trainable weights. The twin is `bnkit.keras.add(build())`, compiled alike; of a model
    that brings batch norms, the plain side is what is left without. `data()` returns (train, test):
    each arrays (x, y) as `fit` takes them, or an iterable of such mini-batches; or it is the name
    of a data set (digits, mnist, fashion-mnist). Both are called afresh for each trial, under its
    seed: all sides begin with the same values, also those of random seeds, and see the same
    mini-batches. They train by `train_on_batch`, on the backend of this process, and are measured
    in inference and by the statistics of the held-out mini-batches. `KerasSettings` explains the
    options; the verdict, the report, `out`, `jobs`, `train`, `log` and all else are those of
    `bnkit.compare`.

    Raises ValueError or TypeError for anything that cannot be compared, before any trial runs,
    and `bnkit.Interrupted` on Ctrl-C.

    >>> def build():
    ...     return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(),
    ...                              keras.layers.Dense(16, activation="relu"),
    ...                              keras.layers.Dense(10)])
    >>> found = compare(build, "digits", learning_rates=[0.1], seeds=1, steps=40,
    ...                 evaluate_every=20, jobs=1, progress=False)
    >>> [(trial.side, trial.curve.steps) for trial in found.trials]
    [('plain', (20, 40)), ('batch norm', (20, 40))]
    """
    chosen = KerasSettings(**settings)
    return planned_and_run(
        partial(
            plan_comparison,
            build,
            data,
            settings=chosen,
            version=version,
            data_folder=data_folder,
        ),
        chosen.shared,
        given=settings,
        train=train,
        sweep=sweep or {},
        out=out,
        log=log,
        jobs=jobs,
        progress=progress,
        trial_timeout=trial_timeout,
        executor=executor,
        code_by_value=code_by_value,
    )


def plan_comparison(
    build: Build | str,
    data: Callable[[], Any] | str | None,
    *,
    settings: KerasSettings,
    out: Path | str,
    loop: OwnLoop | None = None,
    version: str = "",
    data_folder: Path | str | None = None,
    command: str = "bnkit.keras.compare(...)",
) -> Sweep:
    """Return the sweep that `compare` runs, with every part of it tried once and nothing written.

    Raises as `compare` does.
    """
    require("compare", "a comparison")
    with preserved_random_state():
        folder = None if data_folder is None else Path(data_folder)
        experiment = _experiment_of(
            build, data, settings, folder=folder, loop=loop, version=version
        )
        experiment = _rehearsed(experiment).with_sources()
        rates = experiment.learning_rates()
        seeds = LOOKS[0] if settings.seeds == "auto" else settings.seeds
        trials = tuple(_trials(experiment, rates, range(seeds)))
        recipe, description = experiment.recipe, _described(experiment, build, rates)
    return Sweep(
        settings.shared,
        trials,
        Store(Path(out) / "trials", TrialResult.from_json),
        description,
        recipe,
        command,
        experiment.metric,
        target=target_of(
            settings.target,
            experiment.metric,
            is_own=not isinstance(data, str) or loop is not None,
        ),
        grown=partial(_grown, experiment, rates) if settings.seeds == "auto" else None,
    )


def _experiment_of(
    build: Build | str,
    data: Callable[[], Any] | str | None,
    settings: KerasSettings,
    *,
    folder: Path | None,
    loop: OwnLoop | None,
    version: str,
) -> KerasExperiment:
    sources = own_sources()  # first: an edit between this and `identity` is noticed
    if isinstance(build, keras.Model) or not (isinstance(build, str | Path) or callable(build)):
        raise TypeError(
            f"`build` is a {type(build).__name__}: pass a function that builds your model at each "
            f"call, as in `lambda: keras.Sequential(...)`, or a .keras file"
        )
    check_data(data, loop, PARTS)
    if loop is not None:
        settings.refuse_given(OF_THE_BUILT_IN_LOOP, "`train` is your own")
    build = str(Path(build).absolute()) if isinstance(build, str | Path) else build
    sides = {name_of(side): side for side in settings.sides}
    identity = {
        **keras_versions(),
        "version": version,
        "build": build if isinstance(build, str) else source_of(build),
        **{f"side {name}": source_of(side) for name, side in sides.items() if callable(side)},
    }
    if loop is not None:
        identity |= loop.identity
    experiment = KerasExperiment(
        build, None, settings, sides, keras_settings(), identity, sources, loop
    )
    if isinstance(data, str):
        model = experiment.built(0).model
        inputs = keras.tree.flatten(model.inputs)
        if len(inputs) != 1:
            raise ValueError(f"`data` is {data!r}, and the model has {len(inputs)} inputs")
        source = named_source(data, settings, tuple(inputs[0].shape[1:]), folder=folder)
    elif data is not None:
        source = own_source(data, settings, checked=loop is None)
    else:
        return experiment
    return replace(experiment, source=source, identity={**identity, **source.identity})


def _rehearsed(experiment: KerasExperiment) -> KerasExperiment:
    """Return the experiment with the metric that is judged, once all sides took one step.

    Raises ValueError, in one sentence, for models that cannot be normalised or trained, models or
    mini-batches that differ when they are drawn again, and code that cannot be sent to a process.
    """
    one, other = experiment.built(0), experiment.built(0)
    alike = model_fingerprint(one.model) == model_fingerprint(other.model)
    if one.model is other.model or not alike:
        raise ValueError(
            "`build` gives another model when it is called again under the same seed, so the sides "
            "could not begin alike: build a new one at each call, and draw its values from Keras' "
            "initialisers or from the global random generators"
        )
    if experiment.source is not None:
        _check_same_batches(experiment)
    for activation in experiment.activations:
        metric = _metric_of_steps if experiment.loop is None else _metric_of_loop
        experiment = replace(experiment, metric=metric(experiment, activation))
    check_portable(experiment)
    return experiment


def _metric_of_steps(experiment: KerasExperiment, _activation: str) -> Metric:
    metrics = [_tried(experiment, side, model) for side, model in _first_models(experiment)]
    return metrics[0]


def _metric_of_loop(experiment: KerasExperiment, activation: str) -> Metric:
    assert experiment.loop is not None
    (known, first), *others = (
        (side, _tried_by_loop(experiment, side, model, activation))
        for side, model in _first_models(experiment)
    )
    check_read(first.read, experiment.loop, experiment.settings.shared)
    for side, found_there in others:
        check_same_reports(first, known, found_there, side)
    return experiment.loop.judged(first.reported)


def _first_models(experiment: KerasExperiment) -> Iterator[tuple[Side, Any]]:
    _, given_rate = experiment.learning_rates()[0]
    for side in experiment.sides:
        yield side, experiment.network(side, 0, given_rate)


def _tried(experiment: KerasExperiment, side: Side, model: Any) -> Metric:
    """Return the metric that is judged, after one training step and one measurement."""
    settings, loaders = experiment.settings, experiment.loaders(0)
    with blaming(f"a training step of the {side} model fails"):
        x, y, weights = next(pairs_in(loaders.train, settings.batch_size))
        model.train_on_batch(x, y, sample_weight=weights, return_dict=True)
    with blaming(f"measuring the {side} model on the test data fails"):
        x, y, weights = next(pairs_in(loaders.test, settings.batch_size))
        model.reset_metrics()
        logs = model.test_on_batch(x, y, sample_weight=weights, return_dict=True)
    return metric_of(logs, settings)


def _tried_by_loop(
    experiment: KerasExperiment, side: Side, model: Any, activation: str
) -> Rehearsed:
    """Return what `train` does with this model up to its first report."""
    assert experiment.loop is not None
    rate, _ = experiment.learning_rates()[0]
    trial = experiment.running(side, activation, 0, rate, tell=None)
    keras.utils.set_random_seed(0)
    run_rehearsal(experiment.loop, model, trial, f"the {side} model")
    return Rehearsed(trial.reported, {}, trial.read)


def _check_same_batches(experiment: KerasExperiment) -> None:
    if experiment.loop is not None:
        return  # they may be anything
    size = experiment.settings.batch_size
    one, other = (
        [
            batch_fingerprint(list(next(pairs_in(part, size))))
            for part in (loaders.train, loaders.test)
        ]
        for loaders in (experiment.loaders(0), experiment.loaders(0))
    )
    if one != other:
        raise ValueError(
            "`data` gives other batches when it is called again under the same seed, so the sides "
            "could not see the same: draw from the global random generators, or seed your own in it"
        )


def _trials(
    experiment: KerasExperiment, rates: Sequence[tuple[float, float | None]], seeds: Iterable[int]
) -> Iterator[KerasTrial]:
    settings = experiment.settings
    names = "batch_size shuffle steps epochs evaluate_every training_mode_accuracy".split()
    for activation in experiment.activations:
        for seed in seeds:
            for side in experiment.sides:
                built = experiment.built(seed)
                model = experiment.side(side, built, seed)
                # What changes no number (target, jobs, folder) is left out: results serve again.
                decides = {
                    **experiment.identity,
                    "around": experiment.around,
                    "which": (side, activation, seed),
                    "model": model_fingerprint(model),
                    "compiled": identity_of(built.arguments),
                    "training": {name: getattr(settings, name) for name in names},
                    "metric": experiment.metric.name,
                }
                if experiment.loop and (swept := experiment.loop.swept(activation)):
                    decides["swept"] = source_of(swept)
                arrays = values_of(model)
                for rate, given in rates:
                    key = fingerprint({**decides, "learning_rate": (rate, given)})
                    yield KerasTrial(key, experiment, side, activation, seed, arrays, rate, given)


def _grown(
    experiment: KerasExperiment,
    rates: Sequence[tuple[float, float | None]],
    before: int,
    seeds: int,
) -> tuple[KerasTrial, ...]:
    with preserved_random_state():
        return tuple(_trials(experiment, rates, range(before, seeds)))


def _described(
    experiment: KerasExperiment, build: Build | str, rates: Sequence[tuple[float, float | None]]
) -> dict[str, object]:
    versions = experiment.identity
    data = "" if experiment.source is None else experiment.source.name
    arguments = experiment.built(0).arguments
    brought = {name: _name_of(arguments[name]) for name in ("optimizer", "loss") if arguments}
    found: dict[str, object] = {
        "network": Path(build).name if isinstance(build, str) else reference_to(build),
        "data": data,
        "version": versions["version"],
        "train": "" if experiment.loop is None else reference_to(experiment.loop.function),
        "framework": f"Keras {versions['keras']}, {versions['backend']}",
        **experiment.settings.to_json(),
        **brought,
        "learning_rates": [rate for rate, _ in rates],
        "steps": experiment.steps,
        "metric": experiment.metric.name,
    }
    return {name: value for name, value in found.items() if value not in ("", None)}


def _name_of(value: Any) -> str:
    if isinstance(value, str):
        return value
    return getattr(value, "__name__", type(value).__name__)
