"""`TrialResult`: what one trial found; `Store`: the folder that keeps results between runs."""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from bnkit.files import write_atomically

Side = Literal["plain", "batch norm"]
SIDES: tuple[Side, Side] = ("plain", "batch norm")
Outcome = Literal["finished", "diverged", "failed", "not run"]

FORMAT = 1  # of results in files; those of bnkit 0.1.0 name none


@dataclass(frozen=True)
class Curve:
    """What was measured along one training run; the tuples are of equal length.

    `loss` is the mean training loss since the previous evaluation, None where it was not finite.
    `accuracy` is measured on held-out data with the running statistics;
    `training_mode_accuracy`, with the statistics of the held-out batches themselves, is empty
    unless it was asked for.
    """

    steps: tuple[int, ...] = ()
    loss: tuple[float | None, ...] = ()
    accuracy: tuple[float, ...] = ()
    training_mode_accuracy: tuple[float, ...] = ()

    def first_step_at(self, target: float) -> int | None:
        """Return the first evaluated step whose accuracy is at least `target`, or None.

        >>> Curve((50, 100, 150), (2.0, 1.0, 0.5), (0.3, 0.9, 0.95)).first_step_at(0.9)
        100
        """
        reached = (step for step, a in zip(self.steps, self.accuracy, strict=True) if a >= target)
        return next(reached, None)


@dataclass(frozen=True)
class TrialResult:
    """One network, trained once: its setting, what came of it, and what it cost.

    `accuracy` is the last held-out accuracy and `test_accuracy` that on the test set (the same
    where the data have no separate validation set); both are None where nothing was trained.
    `seconds` is the time in training steps, evaluation excluded.
    """

    key: str
    side: Side
    learning_rate: float
    activation: str
    seed: int
    outcome: Outcome
    reason: str = ""
    curve: Curve = Curve()
    accuracy: float | None = None
    test_accuracy: float | None = None
    parameters: int = 0
    buffers: int = 0
    steps: int = 0
    seconds: float = 0.0

    def succeeds(self, target: float) -> bool:
        """Return whether the run ended finite and at the target accuracy or above."""
        return self.outcome == "finished" and self.accuracy is not None and self.accuracy >= target

    def steps_to(self, target: float) -> int | None:
        """Return the first evaluated step at the target; None if never, or if the run diverged."""
        return None if self.outcome == "diverged" else self.curve.first_step_at(target)

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

        >>> trial = TrialResult("a1", "plain", 0.1, "relu", 0, "finished", accuracy=0.9)
        >>> TrialResult.from_json(trial.to_json()) == trial
        True
        """
        curve = Curve(**{name: tuple(values) for name, values in fields["curve"].items()})
        return cls(**{**fields, "curve": curve})


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


class Store(Generic[R]):
    """A folder with one file for each trial's result, and a marker for each that has begun.

    `read` makes a result from the plain data of its `to_json`.
    """

    def __init__(self, folder: Path, read: Callable[[Any], R]) -> None:
        self.folder = folder
        self._read = read

    def prepare(self, keys: Iterable[str]) -> dict[str, R]:
        """Make the folder, remove what would block the trials of these keys; return their results.

        Removed are the markers of an interrupted run, damaged and older results, and failures,
        whose cause may be gone. Raises OSError, naming the folder, if it cannot be written.
        """
        keys = list(keys)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Only writing shows whether it can be written: root passes any check of its mode.
            probe = self.folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
            found = {k: r for k, r in self.results(keys).items() if r.outcome != "failed"}
            for key in keys:
                self._marker(key).unlink(missing_ok=True)
                if key not in found:
                    self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise OSError(
                f"the folder {self.folder} cannot be written ({error.strerror}): choose another"
            ) from error
        return found

    def results(self, keys: Iterable[str]) -> dict[str, R]:
        """Return the results that are kept under these keys, each read once.

        One warning counts all results in the folder that another version of bnkit wrote.
        """
        others = sum(map(_is_of_another_version, self.folder.glob("*.json")))
        if others:
            warnings.warn(
                f"results of another version of bnkit in {self.folder}: {others}; they are not "
                f"read, and their trials run again",
                stacklevel=2,
            )
        return {key: result for key in keys if (result := self.load(key)) is not None}

    def load(self, key: str) -> R | None:
        """Return the result that is kept under `key`, or None; a damaged one counts as none."""
        path = self._path(key)
        try:
            fields = json.loads(path.read_text())
            if fields.pop("format", None) != FORMAT and "key" in fields:
                return None
            return self._read(fields)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            warnings.warn(
                f"{path} is damaged ({type(error).__name__}: {error}): its trial counts as not run",
                stacklevel=2,
            )
            return None

    def save(self, result: R) -> None:
        """Keep a result, whole or not at all."""
        path = self._path(result.key)
        document = {"format": FORMAT, **result.to_json()}
        write_atomically(path, json.dumps(document, allow_nan=False).encode())
        self._marker(result.key).unlink(missing_ok=True)
        for left_over in self.folder.glob(f".{path.name}.*.part"):  # by a process that was killed
            left_over.unlink(missing_ok=True)

    def begin(self, key: str) -> None:
        """Mark a trial as begun: the marker outlives a process that dies in it."""
        self._marker(key).touch()

    def has_begun(self, key: str) -> bool:
        """Return whether a trial was begun and has not ended."""
        return self._marker(key).exists()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _marker(self, key: str) -> Path:
        return self.folder / f"{key}.begun"


def _is_of_another_version(path: Path) -> bool:
    """Return whether a result was written with another format, or before there was one."""
    ours = f'{{"format": {FORMAT}, '.encode()
    try:
        with path.open("rb") as file:
            begins = file.read(len(ours))
    except OSError:  # removed by another process meanwhile
        return False
    return begins.startswith((b'{"key"', b'{"format"')) and begins != ours
