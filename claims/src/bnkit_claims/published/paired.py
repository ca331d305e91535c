"""Experiments that train a network with and without batch norm: what most of the notes show."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.results import SIDES, Side
from bnkit.experiments.settings import Settings
from bnkit_claims.published.experiment import Experiment, Found, Quantity, Repetition

TRAINS = 90.0  # percent on the validation set, from which a run counts as a success


@dataclass(frozen=True)
class Accuracies:
    """Published accuracies of one side in percent, None where there is only a plot."""

    validation: float | None = None
    test: float | None = None


PLOT_ONLY = Accuracies()


def paired(
    name: str,
    title: str,
    *,
    source: str,
    network: str,
    settings: Settings,
    plain: Accuracies,
    batch_norm: Accuracies,
    note: str,
) -> Experiment:
    """Return the experiment that trains `network` on MNIST with and without batch norm."""
    published: dict[Side, Accuracies] = {"plain": plain, "batch norm": batch_norm}
    return Experiment(
        name=name,
        title=title,
        source=source,
        quantities=tuple(_quantities(published)),
        note=note,
        run=partial(_run, name, network, settings),
    )


def quantity(side: Side, part: str) -> str:
    """Return the name of an accuracy: that of one side on one part of the data.

    >>> quantity("plain", "test")
    'plain, test accuracy'
    """
    return f"{side}, {part} accuracy"


def _quantities(published: dict[Side, Accuracies]) -> Sequence[Quantity]:
    return [
        Quantity(quantity(side, part), "%", getattr(published[side], part), bar)
        for side in SIDES
        for part, bar in (("validation", TRAINS), ("test", None))
    ]


def _run(name: str, network: str, settings: Settings, how: Repetition) -> Found:
    sweep = plan_comparison(
        network,
        "mnist",
        settings=replace(settings, seeds=how.seeds or settings.seeds),
        data_folder=how.folder,
        out=how.out,  # so that experiments with the same setting share their trials
        command=f"bnkit reproduce {name}",
    )
    comparison = sweep.run(jobs=how.jobs, progress=how.progress)
    values = {
        quantity(side, part): tuple(
            _percent(trial.accuracy if part == "validation" else trial.test_accuracy)
            for trial in comparison.trials
            if trial.side == side
        )
        for side in SIDES
        for part in ("validation", "test")
    }
    return Found(values, comparison)


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 4)
