"""`Store`: a folder of results, each whole or not at all, and of what has begun."""

import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from bnkit.files import write_atomically


class Result(Protocol):
    """What a run gave: `key` names its file, and an `outcome` of "failed" is tried again."""

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

    `read` makes a result of the plain data that its `to_json` gave.
    """

    def __init__(self, folder: Path, read: Callable[[Any], R]) -> None:
        self.folder = folder
        self._read = read

    def prepare(self, keys: Iterable[str]) -> None:
        """Make the folder, and clear what stands in the way of running the trials of these keys.

        That is the markers of a run that was cut off, damaged results, and failures, which may
        have had a cause that is gone. Raises OSError, saying which folder, where it cannot be
        written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
            for key in keys:
                self._marker(key).unlink(missing_ok=True)
                result = self.load(key)
                if result is None or result.outcome == "failed":
                    self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise OSError(
                f"the folder {self.folder} cannot be written ({error.strerror}): choose another"
            ) from error

    def load(self, key: str) -> R | None:
        """Return the result that is kept under `key`, or None; a damaged one counts as none."""
        path = self._path(key)
        try:
            return self._read(json.loads(path.read_text()))
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
        write_atomically(path, json.dumps(result.to_json(), allow_nan=False).encode())
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
