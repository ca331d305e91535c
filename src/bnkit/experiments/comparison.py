"""`compare`: train a network with and without batch norm, paired, and say what it changes."""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Protocol, Unpack

from bnkit.experiments.experiment import Build, Experiment, experiment_of
from bnkit.experiments.leases import Leases
from bnkit.experiments.loaders import OwnLoaders
from bnkit.experiments.metrics import Metric
from bnkit.experiments.own_loop import OwnLoop, Train, listed, own_loop
from bnkit.experiments.processes import Runnable, run_trials
from bnkit.experiments.provenance import (
    array_fingerprint,
    environment,
    fingerprint,
    model_fingerprint,
    usable_cores,
    versions,
)
from bnkit.experiments.rehearsal import rehearse
from bnkit.experiments.results import TrialResult
from bnkit.experiments.settings import (
    Settings,
    SettingsOptions,
    check_count,
    check_positive,
    training_of,
)
from bnkit.experiments.store import Store
from bnkit.experiments.summary import Comparison, Recipe, own_best
from bnkit.experiments.training import Training
from bnkit.experiments.trial_logs import Log, TrialLogs
from bnkit.experiments.trials import Trial
from bnkit.experiments.verdict import LOOKS
from bnkit.extras import require
from bnkit.observation import preserved_random_state, preserved_torch_settings
from bnkit.options import parameters_of, showing
from bnkit.progress import Count, counting
from bnkit.source_code import source_of

NAMED_TARGET = 0.9  # the accuracy to reach on a named data set


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a comparison; `comparison` holds what had finished, the rest as not run."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__()
        self.comparison = comparison


class AnyTrial(Runnable[TrialResult], Protocol):
    """A trial of a network of any framework, as a dataclass with a field `told_in`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def not_run(self) -> TrialResult:
        """The record of this trial before it has run."""


@dataclass(frozen=True)
class Sweep:
    """The trials of one comparison, named but not yet run, and the store of their results.

    With `seeds="auto"` these are the trials of the first look; `grown(m, n)` gives those of the
    seeds from m to n − 1.
    """

    settings: Settings
    trials: tuple[AnyTrial, ...]
    store: Store[TrialResult]
    description: dict[str, object]
    recipe: Recipe
    command: str
    metric: Metric
    target: float | None = None  # None is the first side's own best
    grown: Callable[[int, int], tuple[AnyTrial, ...]] | None = None

    def run(
        self,
        *,
        jobs: int | None = None,
        progress: bool = True,
        trial_timeout: float | None = None,
        executor: Executor | None = None,
        code_by_value: bool = False,
        log: Log | None = None,
    ) -> Comparison:
        """Run what has no result yet, `jobs` at a time (one a core by default); return them all.

        With `seeds="auto"` seeds are added until the verdict is reached, or the budget spent.
        The other options are those of `compare`. Raises Interrupted, with what had finished, on
        Ctrl-C.
        """
        if jobs is not None and executor is not None:
            raise ValueError(
                f"`jobs` is {jobs!r}, processes of this machine, and `executor` brings workers of "
                f"its own: leave one out"
            )
        jobs = usable_cores() if jobs is None else jobs
        check_count("jobs", jobs)
        if trial_timeout is not None:
            check_positive("trial_timeout", trial_timeout)
        ends = time.monotonic() + (self.settings.budget or math.inf)
        folder = self.store.folder
        logs = TrialLogs(
            folder / "running", self.metric, log=log, boards=folder.parent / "tensorboard"
        )
        trials: list[AnyTrial] = []
        results: dict[str, TrialResult] = {}
        try:
            for more in self._looks():
                trials += more
                results |= self.store.prepare(trial.key for trial in more)
                waiting = [trial for trial in more if trial.key not in results]
                done = len(trials) - len(waiting)
                if progress or log is not None:
                    logs.add(waiting)
                    waiting = [replace(trial, told_in=logs.folder) for trial in waiting]
                with counting("trials", len(trials), done=done, shown=progress) as count:
                    results |= run_trials(
                        waiting,
                        self.store,
                        jobs=jobs,
                        on_result=_both(logs.end, count),
                        trial_timeout=trial_timeout,
                        executor=executor,
                        code_by_value=code_by_value,
                        say=_noting(logs, count),
                    )
                found = self._comparison(trials, results)
                if found.settled or time.monotonic() > ends:
                    break
        except KeyboardInterrupt:
            raise Interrupted(self.collect()) from None
        finally:
            logs.close()
        return found

    def _looks(self) -> Iterator[Sequence[AnyTrial]]:
        """Yield the trials that each look adds to those before."""
        yield self.trials
        if self.grown is not None:
            for before, seeds in pairwise(LOOKS):
                yield self.grown(before, seeds)

    def collect(self) -> Comparison:
        """Return the comparison of the results that are there; the other trials are not run.

        Of those that run at this moment, the reason says where and since when.
        """
        trials: list[AnyTrial] = []
        results: dict[str, TrialResult] = {}
        for more in self._looks():
            found = self.store.results(trial.key for trial in more)
            if trials and not found:
                break
            trials, results = [*trials, *more], {**results, **found}
        leases = Leases(self.store.folder)
        for trial in trials:
            if trial.key not in results and (holder := leases.holder(trial.key)) is not None:
                where = f"runs on {holder.host} since {holder.since}"
                results[trial.key] = replace(trial.not_run, reason=where)
        return self._comparison(trials, results)

    def _comparison(
        self, trials: Sequence[AnyTrial], results: Mapping[str, TrialResult]
    ) -> Comparison:
        found = tuple(results.get(trial.key, trial.not_run) for trial in trials)
        return Comparison(
            settings=self.description,
            environment=environment(),
            target=own_best(found, self.metric) if self.target is None else self.target,
            command=self.command,
            trials=found,
            recipe=self.recipe,
            own_target=self.target is None,
            margin=self.settings.margin,
            looks=1 if self.grown is None else len(LOOKS),
            metric=self.metric,
        )


def _both(one: Callable[[Any], object], other: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda result: (one(result), other(result))


def _noting(logs: TrialLogs, count: Count) -> Callable[[str], object]:
    """Return what is told of trials that run for long: else the bar notes the last numbers."""

    def say(told: str) -> None:
        latest = logs.look()
        count.say(latest or told)

    return say


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
    if sweep and train is None:
        raise ValueError(
            f"`sweep` has {listed(sweep)}, and there is no `train` that reads trial.settings: pass "
            f"a loop of your own, or leave it out"
        )
    if log == "tensorboard" and out is None:
        raise ValueError("`log` is 'tensorboard', which writes beside the results: pass `out`")
    loop = None if train is None else own_loop(train, chosen, sweep or {}, given=settings)
    with tempfile.TemporaryDirectory(prefix="bnkit-") as temporary:
        planned = plan_comparison(
            build,
            data,
            settings=chosen,
            loop=loop,
            example=example,
            version=version,
            data_folder=data_folder,
            out=out or temporary,
        )
        return planned.run(
            jobs=jobs,
            progress=progress,
            trial_timeout=trial_timeout,
            executor=executor,
            code_by_value=code_by_value,
            log=log,
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
        target=_target(experiment, settings),
        grown=partial(_grown, experiment, trainings) if settings.seeds == "auto" else None,
    )


def _target(experiment: Experiment, settings: Settings) -> float | None:
    """Return the target; None, which is the first side's own best, for data of one's own."""
    is_own = experiment.is_own_data or experiment.loop is not None
    if settings.target == "best" or (settings.target is None and is_own):
        return None
    target = NAMED_TARGET if settings.target is None else settings.target
    if experiment.metric.percent and not 0 < target <= 1:
        raise ValueError(f"`target` is {target!r}: pass a number above 0 and up to 1")
    return target


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
                    yield Trial(key, experiment, side, activation, seed, training, arrays)
