"""Experiments that are no paired training: each seed is measured by a function of its own."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from bnkit_claims.core.claim import S
from bnkit_claims.core.sweep import Sweep
from bnkit_claims.published.experiment import Experiment, Found, Quantity, Repetition

Measure = Callable[[S, int], Mapping[str, float | None]]


def measured(
    name: str,
    title: str,
    *,
    source: str,
    quantities: tuple[Quantity, ...],
    measure: Measure[S],
    settings: S,
    note: str,
) -> Experiment:
    """Return the experiment in which `measure(settings, seed)` gives each quantity by its name."""
    run = partial(found_by, measure, settings, title=name)
    return Experiment(name, title, source, quantities, note, run=run)


def found_by(measure: Measure[S], settings: S, how: Repetition, *, title: str = "seeds") -> Found:
    """Return what `measure` finds for each seed; finished seeds are kept in the folder `how.out`.

    `how` says which folder the data lie in, and how many seeds if not those of the settings.
    """
    told = replace(
        settings,
        folder=None if how.folder is None else str(how.folder),
        seeds=how.seeds or settings.seeds,
    )
    sweep = Sweep(how.out, jobs=how.jobs, title=title, progress=how.progress)
    rows = sweep(measure, told, list(range(told.seeds)))
    return Found({name: tuple(row[name] for row in rows) for name in rows[0]})
