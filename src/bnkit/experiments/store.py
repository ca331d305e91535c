"""`Store`: the folder that keeps results between runs."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic

from bnkit.experiments.results import FORMAT, R
from bnkit.files import left_over_parts, write_atomically


class Store(Generic[R]):
    """A folder with one file for each trial's result.

    `read` makes a result from the plain data of its `to_json`, and raises ValueError, TypeError,
    KeyError or AttributeError for data that are none. A file holds, beside the result, a checksum
    of its text.
    """

    def __init__(self, folder: Path, read: Callable[[Any], R]) -> None:
        self.folder = folder.absolute()
        self._read = read

    def prepare(self, keys: Iterable[str]) -> dict[str, R]:
        """Make the folder, remove what would block the trials of these keys; return their results.

        Removed are damaged and older results, failures, whose cause may be gone, and what writers
        that were killed have left. Nothing is where all results are there: then the folder need
        not be writable. Raises OSError, naming the folder, if it must be and cannot.
        """
        keys = list(keys)
        # Before they are read: what comes later is the result of another process, and stays.
        there = {key: _identity(self._path(key)) for key in keys}
        found = {k: r for k, r in self.results(keys).items() if r.outcome != "failed"}
        missing = [key for key in keys if key not in found]
        if not missing:
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Only writing shows whether it can be written: root passes any check of its mode.
            probe = self.folder / f".probe-{time.time_ns()}"
            write_atomically(probe, b"")
            for part in left_over_parts(self.folder, now=probe.stat().st_mtime):
                part.unlink(missing_ok=True)
            probe.unlink()
            for key in missing:
                path = self._path(key)
                if there[key] is not None and _identity(path) == there[key]:
                    path.unlink(missing_ok=True)
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
            text = path.read_bytes()
            return None if _is_other(text) else self._checked(key, text)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (
            *(ValueError, TypeError, KeyError, AttributeError),  # what is there is no result
            *(OSError, RecursionError),  # a folder, a file that may not be read; nested lists
        ) as error:
            warnings.warn(
                f"{path} is damaged ({type(error).__name__}: {error}): its trial counts as not run",
                stacklevel=2,
            )
            return None

    def keep(self, result: R) -> R:
        """Save a result, unless one of another process is there, and return the one that is kept.

        Both would hold the same numbers, but for times.
        """
        there = self.load(result.key)
        if there is not None and there.outcome != "failed":
            return there
        self.save(result)
        return result

    def save(self, result: R) -> None:
        """Keep a result, whole or not at all."""
        text = json.dumps(result.to_json(), allow_nan=False)
        head = f'{{"format": {FORMAT}, "sha256": "{_checksum(text.encode())}", "result": '
        write_atomically(self._path(result.key), f"{head}{text}}}".encode())

    def _checked(self, key: str, text: bytes) -> R:
        document = json.loads(text)
        # The text of the result is what stands between the head and the last brace.
        _, _, result = text.partition(b'"result": ')
        if document["sha256"] != _checksum(result[:-1]):
            raise ValueError("its checksum is of another text")
        found = self._read(document["result"])
        if found.key != key:
            raise ValueError(f"it is the result of {found.key!r}")
        return found

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from one that was moved into its place; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _is_of_another_version(path: Path) -> bool:
    """Return whether a result was written with another format, or before there was one."""
    with suppress(OSError), path.open("rb") as file:  # removed by another process meanwhile
        return _is_other(file.read(64))
    return False


def _is_other(text: bytes) -> bool:
    ours = f'{{"format": {FORMAT}, "sha256": '.encode()
    return text.startswith((b'{"key"', b'{"format"')) and not text.startswith(ours)
