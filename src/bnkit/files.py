"""Files that are written whole or not at all, and JSON that every reader accepts."""

import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_AN_HOUR = 3600.0  # seconds


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` into the file at `path`, whole or not at all; its folder is made if missing."""
    with moved_into_place(path) as part:
        part.write_bytes(data)


@contextmanager
def moved_into_place(path: Path) -> Iterator[Path]:
    """Give the path of another file beside `path`, which replaces it once the block has ended.

    The other file is on the disk before it is moved, and gone after an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The processes of several machines may have one number.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def left_over_parts(folder: Path, *, now: float) -> Iterator[Path]:
    """Yield the files in `folder` that `moved_into_place` left when its process was killed.

    They are those that nothing was written into for an hour, by the clock of the file system:
    `now` is the time of a file that was just made there, in seconds.
    """
    for part in folder.glob(".*.part"):
        with suppress(OSError):  # moved into place meanwhile
            if now - part.stat().st_mtime > _AN_HOUR:
                yield part


def strict_json(document: Any, *, indent: int | None = None) -> str:
    """Return the document as JSON that every reader accepts: null for NaN and infinities.

    >>> strict_json({"loss": [0.5, float("nan")]})
    '{"loss": [0.5, null]}'
    """
    return json.dumps(
        plain(document), allow_nan=False, default=str, ensure_ascii=False, indent=indent
    )


def plain(value: Any) -> Any:
    """Return the value as JSON knows it: tuples as lists, None for NaN and infinities.

    >>> plain({"loss": (0.5, float("nan"))})
    {'loss': [0.5, None]}
    """
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {str(name): plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value
