"""`Experiment`: a published setting with its figures, and what runs it here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bnkit.experiments.summary import Comparison


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
class Repetition:
    """How an experiment is run: where the data lie, over how many seeds, in how many processes.

    Results are kept in the folder `out` and gone on from.
    """

    out: Path
    folder: Path | None
    seeds: int | None
    jobs: int
    progress: bool = True


@dataclass(frozen=True)
class Found:
    """What our runs gave: for each quantity a value for each seed, None where a run has none.

    `comparison` holds the curves, where the experiment is a paired training.
    """

    values: Mapping[str, tuple[float | None, ...]]
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Experiment:
    """A published experiment: who made it, what was set and found, and what runs it here.

    `needs` says what it would take where it cannot run here (`run` is None then); `note` what a
    reader has to know, such as that the published figure is a single unseeded run.
    """

    name: str
    title: str
    source: str
    quantities: tuple[Quantity, ...]
    note: str
    run: Callable[[Repetition], Found] | None = None
    needs: str = ""

    def __post_init__(self) -> None:
        if (self.run is None) != bool(self.needs):
            raise ValueError(f"experiment {self.name!r} needs either `run` or `needs`")
