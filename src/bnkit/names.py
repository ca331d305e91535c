"""Names that users type: found in a table, or answered with similar ones."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


def one_of(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """Return `table[name]`; ValueError, with near names and the whole list, if there is none.

    >>> one_of({"sgd": 1, "adam": 2}, "sgd", "optimizer")
    1
    """
    if name not in table:
        raise ValueError(unknown_name(kind, name, table))
    return table[name]


def one_beginning(table: Mapping[str, Entry], typed: str, kind: str) -> Entry:
    """Return the entry whose name this is, or the only one whose name begins so, as `one_of` does.

    >>> one_beginning({"stale-statistics": 1, "unfolded": 2}, "stale", "rule")
    1
    """
    return one_of(table, completed(typed, table), kind)


def completed(typed: str, names: Iterable[str]) -> str:
    """Return the only name that begins as it is typed; what is typed, if there is none or several.

    >>> completed("fashion", ["digits", "mnist", "fashion-mnist"]), completed("", ["mlp"])
    ('fashion-mnist', '')
    """
    names = list(names)
    begun = [name for name in names if typed and name.startswith(typed)]
    return begun[0] if len(begun) == 1 and typed not in names else typed


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> str:
    """Return the message that `name` is none of `choices`, with those that look like it.

    >>> unknown_name("network", "resnte", ["mlp", "resnet"])
    "unknown network 'resnte': did you mean 'resnet'? Choose from mlp, resnet"
    >>> unknown_name("rule", "stale", ["stale-statistics", "unfolded"])
    "unknown rule 'stale': did you mean 'stale-statistics'? Choose from stale-statistics, unfolded"
    """
    choices = sorted(choices)
    close = difflib.get_close_matches(name.lower(), choices)
    holding = [choice for choice in choices if name.lower() in choice]
    near = " or ".join(map(repr, close or holding[:3]))
    advice = f"did you mean {near}? Choose" if near else "choose"
    return f"unknown {kind} {name!r}: {advice} from {', '.join(choices)}"
