"""The fingerprint of a measuring function: its own code, and that of its module which it uses."""

import hashlib
import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any


def code_of(function: Callable[..., Any]) -> str:
    """Return a fingerprint of the function's source and of what it uses from its own module.

    What it uses from elsewhere in bnkit is named by bnkit's version. Words around it, such as the
    statement of a claim, do not count.
    """
    digest = hashlib.sha256()
    for text in _sources(function, {}):
        digest.update(text.encode())
    return digest.hexdigest()[:16]


def _sources(thing: Any, seen: dict[int, Any]) -> Iterator[str]:
    if id(thing) in seen:
        return
    seen[id(thing)] = thing
    if not (inspect.isfunction(thing) or inspect.isclass(thing)):
        yield repr(thing)
        return
    yield inspect.getsource(thing)
    module = inspect.getmodule(thing)
    for code in _codes(thing):
        for name in sorted(code.co_names):
            used = vars(module).get(name)
            if inspect.isfunction(used) or inspect.isclass(used):
                if inspect.getmodule(used) is module:
                    yield from _sources(used, seen)
            elif isinstance(used, int | float | str | tuple):
                yield from _sources(used, seen)


def _codes(thing: Any) -> Iterator[CodeType]:
    functions = [thing] if inspect.isfunction(thing) else vars(thing).values()
    waiting = [f.__code__ for f in functions if inspect.isfunction(f)]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [part for part in code.co_consts if isinstance(part, CodeType)]
