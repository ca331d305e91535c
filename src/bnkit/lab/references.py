"""References such as "package.module:build", by which people name their own code in a command."""

import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast


def import_reference(reference: str) -> Callable[..., Any]:
    """Return the function that "package.module:name" refers to, found from the current folder too.

    Raises ValueError, saying which part is wrong, for text of another form, a module that cannot
    be imported, and a name that is absent or cannot be called.

    >>> import_reference("math:sqroot")
    Traceback (most recent call last):
    ValueError: 'math:sqroot': module 'math' has no 'sqroot'; did you mean 'sqrt'?
    """
    module_name, colon, name = reference.partition(":")
    if not (module_name and colon and name):
        raise ValueError(f"{reference!r} is no reference: write it as package.module:function")
    found = getattr(_module(reference, module_name), name, None)
    if found is None:
        near = difflib.get_close_matches(name, vars(sys.modules[module_name]), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{reference!r}: module {module_name!r} has no {name!r}{hint}")
    if callable(found):
        return cast("Callable[..., Any]", found)
    kind = type(found).__name__
    raise ValueError(f"{reference!r} is a {kind}: it must be a function without arguments")


def called(function: Callable[[], Any], argument: str) -> Any:
    """Return what a function of the user's own returns; ValueError, saying which, if it fails.

    >>> called(lambda: 1 / 0, "build")
    Traceback (most recent call last):
    ValueError: `build` (<lambda>) fails: ZeroDivisionError: division by zero
    """
    try:
        return function()
    except Exception as error:  # any code of the user's may raise anything
        name = getattr(function, "__qualname__", type(function).__name__)
        kind = type(error).__name__
        raise ValueError(f"`{argument}` ({name}) fails: {kind}: {error}") from error


def _module(reference: str, name: str) -> Any:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except Exception as error:  # any code of the user's may raise anything
        raise ValueError(
            f"{reference!r}: module {name!r} cannot be imported from {folder}: "
            f"{type(error).__name__}: {error}"
        ) from error
