"""`PublishedExperiment`: a published setting with its figures, and what runs it here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic

from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.settings import Settings
from bnkit.experiments.summary import Comparison
from bnkit_claims.core.cases import InProcesses, Repetition
from bnkit_claims.core.claim import S

TRAINS = 90.0  # percent on the validation set, from which a run counts as a success
SETS = ("validation", "test")
ByPart = tuple[float | None, float | None]  # accuracy in percent on the validation and the test set
PLOT_ONLY: ByPart = (None, None)


@dataclass(frozen=True)
class Quantity:
    """One published figure: what it is, in which unit, and its value.

    `published` is None where the source shows a plot or words only; `bar` is the value from which
    a run of ours counts as a success, None where nothing is said of success.
    """

    name: str
    unit: str
    published: float | None
    bar: float | None = None


@dataclass(frozen=True)
class Measured:
    """What our runs gave: for each quantity a value for each seed, None where a run has none.

    `comparison` holds the curves, where the experiment is a paired training.
    """

    values: Mapping[str, tuple[float | None, ...]]
    comparison: Comparison | None = None


@dataclass(frozen=True)
class PublishedExperiment:
    """A published experiment: who made it, what was set and found, and what runs it here.

    `needs` says what it would take where it cannot run here (`run` is None then); `note` what a
    reader has to know, such as that the published figure is a single unseeded run.
    """

    name: str
    title: str
    source: str
    quantities: tuple[Quantity, ...]
    note: str
    run: Callable[[Repetition], Measured] | None = None
    needs: str = ""

    def __post_init__(self) -> None:
        if (self.run is None) != bool(self.needs):
            raise ValueError(f"experiment {self.name!r} needs either `run` or `needs`")

    def measure(self, how: Repetition) -> Measured:
        """Return what our runs give; no values where it cannot run here."""
        return Measured({}) if self.run is None else self.run(replace(how, title=self.name))


@dataclass(frozen=True)
class BySeed(Generic[S]):
    """Runs an experiment in which `measure(settings, seed)` gives each quantity by its name."""

    measure: Callable[[S, int], Mapping[str, float | None]]
    settings: S

    def __call__(self, how: Repetition) -> Measured:
        """Return what is measured for each seed; finished seeds are kept in `how.out`."""
        settings = replace(self.settings, **how.options)
        rows = InProcesses(how)(self.measure, settings, list(range(settings.seeds)))
        return Measured({name: tuple(row[name] for row in rows) for name in rows[0]})


@dataclass(frozen=True)
class PairedTraining:
    """Runs an experiment that trains a network on MNIST with and without batch norm.

    Experiments with the same setting share their trials, which are kept in the folder `how.out`.
    """

    network: str
    settings: Settings

    def __call__(self, how: Repetition) -> Measured:
        """Return the accuracies in percent, and the comparison that they are from."""
        sweep = plan_comparison(
            self.network,
            "mnist",
            settings=replace(self.settings, seeds=how.seeds or self.settings.seeds),
            data_folder=how.folder,
            out=how.out,
            command=f"bnkit reproduce {how.title}",
        )
        return measured_of(sweep.run(**how.running))


def measured_of(comparison: Comparison) -> Measured:
    """Return the accuracies of a comparison in percent, and the comparison itself."""
    values = {
        quantity(side, part): tuple(
            _percent(trial.metric if part == "validation" else trial.test_metric)
            for trial in comparison.trials
            if trial.side == side
        )
        for side in SIDES
        for part in SETS
    }
    return Measured(values, comparison)


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 4)


def accuracies(plain: ByPart = PLOT_ONLY, batch_norm: ByPart = PLOT_ONLY) -> tuple[Quantity, ...]:
    """Return the quantities of a paired training from its published accuracies.

    >>> accuracies(plain=(82.9, 82.6))[0]
    Quantity(name='plain, validation accuracy', unit='%', published=82.9, bar=90.0)
    """
    return tuple(
        Quantity(quantity(side, part), "%", published, TRAINS if part == "validation" else None)
        for side, both in zip(SIDES, (plain, batch_norm), strict=True)
        for part, published in zip(SETS, both, strict=True)
    )


def quantity(side: Side, part: str) -> str:
    """Return the name of an accuracy: that of one side on one part of the data.

    >>> quantity("plain", "test")
    'plain, test accuracy'
    """
    return f"{side}, {part} accuracy"
