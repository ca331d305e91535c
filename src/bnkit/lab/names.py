"""Names that people type: found in a table, or answered with the ones that are near."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


def one_of(table: Mapping[str, Entry], name: str, what: str) -> Entry:
    """Return `table[name]`; ValueError, with near names and the whole list, if there is none.

    >>> one_of({"sgd": 1, "adam": 2}, "adm", "optimizer")
    Traceback (most recent call last):
    ValueError: unknown optimizer 'adm': did you mean 'adam'? There are sgd, adam
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"unknown {what} {name!r}: {hint}There are {', '.join(table)}")
