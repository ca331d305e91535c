"""Gaps: the runs that a comparison should have had and has not, by reason."""

from collections.abc import Iterable
from dataclasses import dataclass

from bnkit.experiments.results import TrialResult
from bnkit.report.words import heading, number


@dataclass(frozen=True)
class Gap:
    """Runs that are missing, or broke off, for one reason."""

    outcome: str
    reason: str
    runs: tuple[str, ...]


def gaps(trials: Iterable[TrialResult]) -> tuple[Gap, ...]:
    """Return the trials, one gap for each outcome and reason, in the order of their appearance."""
    runs: dict[tuple[str, str], list[str]] = {}
    for trial in trials:
        runs.setdefault((trial.outcome, trial.reason), []).append(_named(trial))
    return tuple(Gap(*cause, tuple(names)) for cause, names in runs.items())


def _named(trial: TrialResult) -> str:
    activation = f", {heading(trial.activation)}" if heading(trial.activation) else ""
    rate = number(trial.learning_rate)
    return f"{trial.side}{activation}, learning rate {rate}, seed {trial.seed}"
