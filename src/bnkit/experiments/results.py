"""`TrialResult`: what one trial found, and what every kind of result has."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeVar, get_type_hints

from bnkit.experiments.metrics import ACCURACY, Metric
from bnkit.files import is_of

Side = str  # its name
SIDES: tuple[Side, Side] = ("plain", "batch norm")
Outcome = Literal["finished", "diverged", "failed", "not run"]

FORMAT = 2  # of results in files; those of bnkit 0.1.0 name none


@dataclass(frozen=True)
class Curve:
    """What was measured along one training run; the tuples are of equal length.

    `loss` is the mean training loss since the previous evaluation, None where it was not finite.
    `metric` is the judged one, on held-out data with the running statistics, None where it was not
    finite; `training_mode_metric`, with the statistics of the held-out batches themselves, is empty
    unless it was asked for.
    """

    steps: tuple[int, ...] = ()
    loss: tuple[float | None, ...] = ()
    metric: tuple[float | None, ...] = ()
    training_mode_metric: tuple[float | None, ...] = ()

    def first_step_at(self, target: float, metric: Metric = ACCURACY) -> int | None:
        """Return the first evaluated step whose value is at `target` or better, or None.

        >>> Curve((50, 100, 150), (2.0, 1.0, 0.5), (0.3, 0.9, 0.95)).first_step_at(0.9)
        100
        """
        measured = zip(self.steps, self.metric, strict=True)
        return next((step for step, value in measured if metric.reaches(value, target)), None)


@dataclass(frozen=True)
class TrialResult:
    """One network, trained once: its setting, what came of it, and what it cost.

    `metric` is the last held-out value and `test_metric` that on the test set (the same
    where the data have no separate validation set); both are None where nothing was trained.
    `seconds` is the time in training steps, evaluation excluded, and `machine` says on what.
    """

    key: str
    side: Side
    learning_rate: float
    activation: str
    seed: int
    outcome: Outcome
    reason: str = ""
    curve: Curve = Curve()
    metric: float | None = None
    test_metric: float | None = None
    parameters: int = 0
    buffers: int = 0
    steps: int = 0
    seconds: float = 0.0
    machine: Mapping[str, str] = field(default_factory=dict)

    def succeeds(self, target: float, metric: Metric = ACCURACY) -> bool:
        """Return whether the run ended finite and at the target or better."""
        return self.outcome == "finished" and metric.reaches(self.metric, target)

    def steps_to(self, target: float, metric: Metric = ACCURACY) -> int | None:
        """Return the first evaluated step at the target; None if never, or if the run diverged."""
        return None if self.outcome == "diverged" else self.curve.first_step_at(target, metric)

    @property
    def milliseconds_per_step(self) -> float:
        """The mean time of one training step, in milliseconds; NaN where none was taken."""
        return 1000 * self.seconds / self.steps if self.steps else math.nan

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain lists, numbers and strings."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "TrialResult":
        """Return the record that `to_json` wrote down.

        >>> trial = TrialResult("a1", "plain", 0.1, "relu", 0, "finished", metric=0.9)
        >>> TrialResult.from_json(trial.to_json()) == trial
        True
        """
        curve = Curve(**{name: tuple(values) for name, values in fields["curve"].items()})
        _check_types(curve)
        measured = (curve.loss, curve.metric, curve.training_mode_metric or curve.metric)
        if any(len(values) != len(curve.steps) for values in measured):
            raise ValueError("the columns of its curve are not of equal length")
        result = cls(**{**fields, "curve": curve})
        _check_types(result)
        return result


def _check_types(record: Curve | TrialResult) -> None:
    """Raise TypeError where a field of a record does not hold what its annotation says."""
    for name, kind in get_type_hints(type(record)).items():
        if not is_of(getattr(record, name), kind):
            raise TypeError(f"`{name}` is {getattr(record, name)!r:.60}")


class Result(Protocol):
    """What a run gave: `key`, its first field, names its file; "failed" is tried again."""

    @property
    def key(self) -> str:
        """The fingerprint of all that decides the result."""

    @property
    def outcome(self) -> str:
        """How it ended."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""


R = TypeVar("R", bound=Result)
