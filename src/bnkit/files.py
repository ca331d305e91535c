"""Files that are written whole or not at all, and JSON that every reader accepts."""

import json
import math
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

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
        with part.open("r+b") as file:  # Windows syncs only what may be written
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


def is_of(value: Any, kind: Any) -> bool:  # noqa: PLR0911  a line for each kind
    """Return whether plain data are what an annotation says; other annotations fit anything.

    Numbers are finite, and no bool is a number; lists serve where tuples are asked for.

    >>> is_of(1, float), is_of("x", float | None), is_of([1, 2.5], tuple[int, ...])
    (True, False, False)
    """
    kind = getattr(kind, "__value__", kind)  # of a `type` statement
    of, origin = get_args(kind), get_origin(kind) or kind
    if origin is Literal:
        return isinstance(value, str | int) and value in of
    if origin in {Union, UnionType}:
        return any(is_of(value, each) for each in of)
    if origin in {int, float}:
        numbers = int if origin is int else int | float
        is_number = isinstance(value, numbers) and not isinstance(value, bool)
        return is_number and abs(value) <= sys.float_info.max  # math.isfinite fails at 10**400
    if origin in {tuple, list, Sequence}:
        is_several = isinstance(value, list | tuple)
        return is_several and all(is_of(item, of[0] if of else Any) for item in value)
    if origin in {dict, Mapping}:
        return isinstance(value, dict) and all(
            isinstance(name, str) and is_of(item, of[1] if of else Any)
            for name, item in value.items()
        )
    if origin in {str, bool, type(None), None}:
        return value is None if origin is None else isinstance(value, origin)
    return True


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
