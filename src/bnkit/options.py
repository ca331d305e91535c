"""Options that are stated once, and shown by each function that takes them."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints, is_typeddict

from bnkit.names import unknown_name

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Default:
    """The default of an option, beside its type in a TypedDict: Annotated[float, Default(0.1)]."""

    value: Any


def parameters_of(options: type) -> list[inspect.Parameter]:
    """Return the fields of a dataclass as parameters by keyword, with their types and defaults.

    So it does the items of a TypedDict whose types are annotated with a `Default`.
    """
    if is_typeddict(options):
        hints = get_type_hints(options, include_extras=True).items()
        found = [(name, get_args(hint)) for name, hint in hints]
        defaults = [(name, _annotated(*kind), default.value) for name, (*kind, default) in found]
    else:
        types = get_type_hints(options)
        defaults = [(field.name, types[field.name], field.default) for field in fields(options)]
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=kind,
            default=inspect.Parameter.empty if default is MISSING else default,
        )
        for name, kind, default in defaults
    ]


def _annotated(kind: Any, *more: Any) -> Any:
    return Annotated[(kind, *more)] if more else kind  # as the command line wants its help


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


def with_options(function: Function) -> Function:
    """Let a function with `**options: Unpack[...]`, of a TypedDict, show and get all of them.

    Its body gets those that the caller left out with their defaults, so that it may hand them on.
    Else as `showing`. It does for functions, constructors and what `contextmanager` makes.

    >>> from typing import Annotated, TypedDict, Unpack
    >>> class Rounding(TypedDict, total=False):
    ...     digits: Annotated[int, Default(1)]
    >>> @with_options
    ... def rounded(x: float, **options: Unpack[Rounding]) -> float:
    ...     return round(x, options["digits"])
    >>> rounded(0.25), rounded(0.25, digits=2), inspect.signature(rounded)
    (0.2, 0.25, <Signature (x: float, *, digits: int = 1) -> float>)
    """
    several = inspect.signature(function).parameters["options"]
    (options,) = get_args(several.annotation)  # of Unpack[...]
    shared = parameters_of(options)
    defaults = {parameter.name: parameter.default for parameter in shared}

    @wraps(function)
    def complete(*args: Any, **given: Any) -> Any:
        return function(*args, **{**defaults, **given})

    return showing(shared)(cast("Function", complete))
