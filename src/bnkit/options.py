"""Options that are stated once, and shown by each function that takes them."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from functools import wraps
from typing import Any, TypeVar, cast, get_type_hints

from bnkit.names import unknown_name

Function = TypeVar("Function", bound=Callable[..., Any])


def parameters_of(options: type) -> list[inspect.Parameter]:
    """Return the fields of a dataclass as parameters by keyword, with their types and defaults."""
    types = get_type_hints(options)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=types[field.name],
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(options)
    ]


def showing(options: Iterable[inspect.Parameter]) -> Callable[[Function], Function]:
    """Let a function with `**options` show these parameters instead, before its own by keyword.

    `help`, `inspect.signature` and the command line then see each of them. The function raises
    TypeError, with near names, for an option that it does not have.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Norm:
    ...     eps: float = 1e-5
    >>> @showing(parameters_of(Norm))
    ... def norm(input, *, out=None, **options):
    ...     return options
    >>> inspect.signature(norm)
    <Signature (input, *, eps: float = 1e-05, out=None)>
    >>> norm(1, epz=0)
    Traceback (most recent call last):
    TypeError: norm: unknown option 'epz': did you mean 'eps'? Choose from eps, out
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = list(signature.parameters.values())
        first = [each for each in own if each.kind < inspect.Parameter.KEYWORD_ONLY]
        last = [each for each in own if each.kind is inspect.Parameter.KEYWORD_ONLY]
        by_keyword = [*options, *last]
        names = {each.name for each in (*first, *by_keyword)}

        @wraps(function)
        def checked(*args: Any, **given: Any) -> Any:
            for name in given.keys() - names:
                known = [each.name for each in by_keyword]
                raise TypeError(f"{function.__name__}: {unknown_name('option', name, known)}")
            return function(*args, **given)

        shown = signature.replace(parameters=[*first, *by_keyword])
        checked.__signature__ = shown  # type: ignore[attr-defined]  # what inspect looks for
        return cast("Function", checked)

    return decorate
