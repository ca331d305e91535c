"""`Store`: the folder that keeps results between runs."""

import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic

from bnkit.experiments.results import FORMAT, R
from bnkit.files import write_atomically


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
