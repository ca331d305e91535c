"""Users' own code: found by a reference such as "package.module:build", named, and blamed."""

import difflib
import importlib
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

_SHOWN = 2000  # characters of a message


def import_reference(reference: str) -> Callable[..., Any]:
    """Return the function that "package.module:name" refers to, found from the current folder too.

    Raises ValueError, saying which part is wrong, for text of another form, a module that cannot
    be imported, and a name that is absent or cannot be called.

    >>> import_reference("math:sqroot")
    Traceback (most recent call last):
    ValueError: 'math:sqroot': module 'math' has no 'sqroot'; did you mean 'sqrt'?
    """
    module_name, colon, name = reference.rpartition(":")
    if not (module_name and colon and name):
        raise ValueError(
            f"{reference!r} is not a reference: write it as package.module:function, or as "
            f"folder/file.py:function"
        )
    if module_name.endswith(".py"):
        module_name = _module_in(reference, Path(module_name))
    module = _module(reference, module_name)
    found = getattr(module, name, None)
    if found is None:
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{reference!r}: module {module_name!r} has no {name!r}{hint}")
    if callable(found):
        return cast("Callable[..., Any]", found)
    kind = type(found).__name__
    raise ValueError(f"{reference!r} is a {kind}: it must be a function without arguments")


def reference_to(function: Callable[..., Any]) -> str:
    """Return the reference of a function, as "package.module:function".

    >>> import math
    >>> reference_to(math.sqrt)
    'math:sqrt'
    """
    module = getattr(function, "__module__", type(function).__module__)
    return f"{module}:{getattr(function, '__qualname__', type(function).__name__)}"


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turn any error of users' code, also SystemExit, into a ValueError.

    >>> with blaming("reading `data` fails"):
    ...     1 / 0
    Traceback (most recent call last):
    ValueError: reading `data` fails: ZeroDivisionError: division by zero
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # it may raise anything
        raise ValueError(f"{what}: {message_of(error)}") from error


def message_of(error: BaseException) -> str:
    r"""Return the type and the message of an error of the user's code, as text that can be written.

    Its `str` may fail, hold lone surrogates (as names of files do) or be very long. The file and
    line of the user's code that raised it follow, where that is known.

    >>> message_of(ValueError("no \udcff"))
    'ValueError: no \\udcff'
    """
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001  it is the user's
        text = f"its message cannot be shown ({type(failure).__name__})"
    text = text.encode("utf-8", "backslashreplace").decode()
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"
    return f"{type(error).__name__}: {shown}{_place_of(error)}"


# Code that is not the user's: packages, Python's own, and bnkit.
_NOT_THEIRS = (
    str(Path(__file__).parent),
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
)


def _place_of(error: BaseException) -> str:
    """Return the innermost place in the user's code, as " (net.py, line 7)"."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith(("<", *_NOT_THEIRS))]
    if not theirs:
        return ""
    path, here = Path(theirs[-1].filename), Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return f" ({shown}, line {theirs[-1].lineno})"


def called(function: Callable[[], Any], argument: str) -> Any:
    """Return what a function of the user's own returns; ValueError, saying which, if it fails.

    >>> called(lambda: 1 / 0, "build")
    Traceback (most recent call last):
    ValueError: `build` (<lambda>) fails: ZeroDivisionError: division by zero
    """
    name = getattr(function, "__qualname__", type(function).__name__)
    with blaming(f"`{argument}` ({name}) fails"):
        return function()


def _module_in(reference: str, file: Path) -> str:
    """Return the name by which the module in a file can be imported from the current folder."""
    here = Path.cwd()
    path = file.resolve()
    if not path.is_file():
        raise ValueError(f"{reference!r}: there is no file {str(file)!r} in {here}")
    if not path.is_relative_to(here):
        raise ValueError(
            f"{reference!r}: the file is not in the current folder, {here}: go to the folder in "
            f"which its imports work, or install its package and write package.module:function"
        )
    return ".".join(path.relative_to(here).with_suffix("").parts)


_searching = threading.Lock()  # sys.path is one for all threads


def _module(reference: str, name: str) -> Any:
    folder = str(Path.cwd())
    with _searching:
        if folder not in sys.path:
            sys.path.insert(0, folder)
    with blaming(f"{reference!r}: module {name!r} cannot be imported from {folder}"):
        return importlib.import_module(name)
