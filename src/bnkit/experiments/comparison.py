"""`compare`: train a network with and without batch norm, paired, and say what it changes."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Unpack

from bnkit.experiments import fingerprints
from bnkit.experiments.environment import environment, usable_cores
from bnkit.experiments.loaders import OwnLoaders
from bnkit.experiments.records import SIDES, TrialResult
from bnkit.experiments.rehearsal import rehearse
from bnkit.experiments.running import run_trials
from bnkit.experiments.settings import Settings, SettingsOptions, check_count
from bnkit.experiments.store import Store
from bnkit.experiments.subject import Build, Subject, subject_of
from bnkit.experiments.summary import Comparison
from bnkit.experiments.training import Training
from bnkit.experiments.trials import Trial
from bnkit.observation import preserved_random_state
from bnkit.options import parameters_of, showing
from bnkit.progress import counting


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a comparison; `comparison` holds what had finished, the rest as not run."""

    def __init__(self, comparison: Comparison) -> None:
        super().__init__()
        self.comparison = comparison


@dataclass(frozen=True)
class Sweep:
    """The trials of one comparison, named but not yet run, and the store of their results."""

    settings: Settings
    trials: tuple[Trial, ...]
    store: Store[TrialResult]
    description: dict[str, object]
    command: str

    def run(self, *, jobs: int | None = None, progress: bool = True) -> Comparison:
        """Run what has no result yet, `jobs` at a time (one a core by default); return them all.

        Raises Interrupted, with what had finished, on Ctrl-C.
        """
        jobs = usable_cores() if jobs is None else jobs
        check_count("jobs", jobs)
        try:
            self.store.prepare(trial.key for trial in self.trials)
            done = sum(self.store.load(trial.key) is not None for trial in self.trials)
            with counting("trials", len(self.trials), done=done, shown=progress) as count:
                run_trials(self.trials, self.store, jobs=jobs, on_result=count)
        except KeyboardInterrupt:
            raise Interrupted(self.collect()) from None
        return self.collect()

    def collect(self) -> Comparison:
        """Return the comparison of the results that are there; the other trials are not run."""
        results = [self.store.load(trial.key) or trial.not_run for trial in self.trials]
        return Comparison(
            settings=self.description,
            environment=environment(),
            target=self.settings.target,
            command=self.command,
            trials=tuple(results),
        )


@showing(parameters_of(Settings))
def compare(
    build: Build | str,
    data: OwnLoaders | str,
    *,
    data_folder: Path | str | None = None,
    out: Path | str | None = None,
    jobs: int | None = None,
    progress: bool = True,
    **settings: Unpack[SettingsOptions],
) -> Comparison:
    """Return what batch norm changes for a network, over learning rates, activations and seeds.

    `build()` returns the plain network, drawn from the global random generators, and `data()`
    returns (train, test), iterables of batches with the inputs first and the targets (N,) last;
    both are called afresh for each trial, under its seed. Or they are names: of a network (mlp,
    dlology, udacity, vgg, resnet, logistic) and of a data set (digits, mnist, fashion-mnist). The
    twin is `bnkit.add(build(), first batch)`. For each seed both sides begin with the same arrays
    and see the same batches. `Settings` explains the options.

    Trials run in `jobs` processes (one a core). With `out`, a folder, each result is kept there,
    and a comparison that was cut off goes on where it stopped.

    Raises ValueError or TypeError for anything that cannot be compared, before any trial runs,
    and Interrupted (a KeyboardInterrupt, with what had finished) on Ctrl-C.

    >>> found = compare("mlp", "digits", learning_rates=[0.1], activations=["relu"], seeds=1,
    ...                 steps=100, evaluate_every=50, progress=False)
    >>> [(trial.side, trial.curve.steps) for trial in found.trials]
    [('plain', (50, 100)), ('batch norm', (50, 100))]
    """
    chosen = Settings(**settings)
    with tempfile.TemporaryDirectory(prefix="bnkit-") as temporary:
        sweep = plan_comparison(
            build, data, settings=chosen, data_folder=data_folder, out=out or temporary
        )
        return sweep.run(jobs=jobs, progress=progress)


def plan_comparison(
    build: Build | str,
    data: OwnLoaders | str,
    *,
    settings: Settings,
    out: Path | str,
    data_folder: Path | str | None = None,
    command: str = "bnkit.compare(...)",
) -> Sweep:
    """Return the sweep that `compare` runs, with every part of it tried once and nothing written.

    Its results are to be kept in the folder `out`/trials; `command` is what people can type to
    repeat it. Raises as `compare` does.
    """
    folder = None if data_folder is None else Path(data_folder)
    with preserved_random_state():
        subject = subject_of(build, data, settings, folder=folder)
        trainings = [
            Training(
                learning_rate=learning_rate,
                optimizer=settings.optimizer,
                loss=settings.loss,
                steps=subject.source.steps,
                evaluate_every=settings.evaluate_every,
                training_mode_accuracy=settings.training_mode_accuracy,
            )
            for learning_rate in settings.learning_rates
        ]
        rehearse(subject, settings)
        trials = tuple(_trials(subject, trainings, settings.seeds))
    store = Store(Path(out) / "trials", TrialResult.from_json)
    return Sweep(settings, trials, store, _described(subject, settings), command)


def _described(subject: Subject, settings: Settings) -> dict[str, object]:
    chosen = {**settings.to_json(), "steps": subject.source.steps}
    used = {name: value for name, value in chosen.items() if name not in subject.unused}
    return {**subject.description, **used}


def _trials(subject: Subject, trainings: Sequence[Training], seeds: int) -> Iterator[Trial]:
    for activation in subject.activations:
        for seed in range(seeds):
            for side in SIDES:
                model = subject.network(side, activation, seed)
                arrays = fingerprints.of_arrays(model)
                decides = {
                    **subject.identity,
                    **fingerprints.versions(),
                    "which": (side, activation, seed),
                    "arrays": fingerprints.of_model(model),
                }
                for training in trainings:
                    key = fingerprints.fingerprint({**decides, "training": asdict(training)})
                    yield Trial(key, subject, side, activation, seed, training, arrays)
