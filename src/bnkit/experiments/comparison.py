"""`compare`: train a network with and without batch norm, paired, and say what it changes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from bnkit.experiments.experiment import Build, Experiment, experiment_of
from bnkit.experiments.loaders import OwnLoaders
from bnkit.experiments.own_loop import OwnLoop, Train
from bnkit.experiments.provenance import (
    array_fingerprint,
    fingerprint,
    model_fingerprint,
    versions,
)
from bnkit.experiments.rehearsal import rehearse
from bnkit.experiments.results import TrialResult
from bnkit.experiments.settings import Settings, SettingsOptions, training_of
from bnkit.experiments.store import Store
from bnkit.experiments.summary import Comparison
from bnkit.experiments.sweep import Sweep, planned_and_run, target_of
from bnkit.experiments.training import Training
from bnkit.experiments.trial_logs import Log
from bnkit.experiments.trials import Trial
from bnkit.experiments.verdict import LOOKS
from bnkit.extras import require
from bnkit.observation import preserved_random_state, preserved_torch_settings
from bnkit.options import parameters_of, showing
from bnkit.source_code import source_of


@showing(parameters_of(Settings))
def compare(
    build: Build | str,
    data: OwnLoaders | str | None = None,
    *,
    train: Train | None = None,
    example: Any = None,
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
    **settings: Unpack[SettingsOptions],
) -> Comparison:
    """Return what batch norm changes for a network, over learning rates, activations and seeds.

    `build()` returns the plain network, drawn from the global random generators, and `data()`
    returns (train, test), iterables of batches with the inputs first and the targets (N,) last;
    both are called afresh for each trial, under its seed. Or they are names: of a network (mlp,
    dlology, udacity, vgg, resnet, logistic) and of a data set (digits, mnist, fashion-mnist). The
    twin is `bnkit.add(build(), first batch)`; of a network that brings batch norms, the plain side
    is what is left without, its biases drawn anew. `sides` names others, each of which is compared
    with the first: "plain", "batch", "group", "layer", "instance", "ghost", or a function from the
    network without batch norm to the side. For each seed both sides begin with the same arrays
    and see the same batches. `Settings` explains the options.

    With `seeds="auto"` there are 3 seeds, then 5, 8, 12 and at most 20, until the verdict says more
    than "not shown" or until after `budget` seconds; its level is divided over these looks.
    With `train(model, trial)` the loop is the user's own: see `RunningTrial` for what a trial is.
    It reports as it goes, `if trial.report(step, accuracy=share): break`; `metric` names what is
    judged where it reports several, and `steps`, where given, is its budget. `learning_rates` are
    those that it reads from the trial, `sweep` holds further settings, by name a list of values
    each. The twin is planned on the first call that `train` makes of the network, or of its parts,
    in a rehearsal of one step of both sides; `example`, inputs of the network, takes its place.
    `data` is optional then. `version` is a text to change where something changes that decides
    results and that bnkit cannot see, such as files that the code reads.

    Trials run in `jobs` processes (one a core). With `out`, a folder, each result is kept there,
    and an interrupted comparison resumes where it stopped; any number of processes may share one.
    A trial that takes longer than `trial_timeout` seconds is recorded as failed. With `executor`,
    any `concurrent.futures.Executor`, such as that of a Dask client, its workers run the trials,
    each in a process of its own; `code_by_value` sends the modules of your code there.
    `log` gets the numbers of the trials while they run: an object with add_scalar(tag, value,
    step), as TensorBoard's SummaryWriter, a function of a dict of numbers by their tags and the
    step, or "tensorboard", which writes them into `out`/tensorboard.

    Raises ValueError or TypeError for anything that cannot be compared, before any trial runs,
    and Interrupted (a KeyboardInterrupt, with what had finished) on Ctrl-C.

    >>> found = compare("mlp", "digits", learning_rates=[0.1], activations=["relu"], seeds=1,
    ...                 steps=100, evaluate_every=50, progress=False)
    >>> [(trial.side, trial.curve.steps) for trial in found.trials]
    [('plain', (50, 100)), ('batch norm', (50, 100))]
    """
    chosen = Settings(**settings)
    return planned_and_run(
        partial(
            plan_comparison,
            build,
            data,
            settings=chosen,
            example=example,
            version=version,
            data_folder=data_folder,
        ),
        chosen,
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
    data: OwnLoaders | str | None,
    *,
    settings: Settings,
    out: Path | str,
    loop: OwnLoop | None = None,
    example: Any = None,
    version: str = "",
    data_folder: Path | str | None = None,
    command: str = "bnkit.compare(...)",
) -> Sweep:
    """Return the sweep that `compare` runs, with every part of it tried once and nothing written.

    Its results are to be kept in the folder `out`/trials; `command` is what users type to
    repeat it. Raises as `compare` does.
    """
    require("compare", "a comparison")
    folder = None if data_folder is None else Path(data_folder)
    with preserved_random_state(), preserved_torch_settings():
        experiment = experiment_of(
            build, data, settings, folder=folder, loop=loop, example=example, version=version
        )
        # What was only imported to rehearse belongs to the plan, too.
        experiment = rehearse(experiment, settings).with_sources()
        trainings = [
            training_of(
                settings, learning_rate, steps=experiment.steps or 0, judge=experiment.judge
            )
            for learning_rate in settings.learning_rates
        ]
        seeds = LOOKS[0] if settings.seeds == "auto" else settings.seeds
        trials = tuple(_trials(experiment, trainings, range(seeds)))
        recipe = experiment.recipe
    store = Store(Path(out) / "trials", TrialResult.from_json)
    return Sweep(
        settings,
        trials,
        store,
        _described(experiment, settings),
        recipe,
        command,
        experiment.metric,
        target=target_of(
            settings.target,
            experiment.metric,
            is_own=experiment.is_own_data or experiment.loop is not None,
        ),
        grown=partial(_grown, experiment, trainings) if settings.seeds == "auto" else None,
    )


def _grown(
    experiment: Experiment, trainings: Sequence[Training], before: int, seeds: int
) -> tuple[Trial, ...]:
    with preserved_random_state(), preserved_torch_settings():
        return tuple(_trials(experiment, trainings, range(before, seeds)))


def _described(experiment: Experiment, settings: Settings) -> dict[str, object]:
    chosen = settings.to_json() | {"steps": experiment.steps, "metric": experiment.metric.name}
    used = {name: value for name, value in chosen.items() if name not in experiment.unused}
    return {**experiment.description, **used}


def _trials(
    experiment: Experiment, trainings: Sequence[Training], seeds: Iterable[int]
) -> Iterator[Trial]:
    for activation in experiment.activations:
        for seed in seeds:
            built = experiment.built(activation, seed)
            for side in experiment.sides:
                model = experiment.side(side, built, seed)
                arrays = array_fingerprint(model)
                # What changes no number (target, jobs, folder) is left out: results serve again.
                decides = {
                    **experiment.identity,
                    **versions(),
                    "which": (side, activation, seed),
                    "arrays": model_fingerprint(model),
                }
                if swept := experiment.swept(activation):
                    decides["swept"] = source_of(swept)
                for training in trainings:
                    key = fingerprint({**decides, "training": training.identity})
                    yield Trial(key, experiment, side, activation, seed, arrays, training)
