"""Functions set on modules, such as a patched `forward`, follow their module into a copy.

copy.deepcopy takes a function for an atom: a closure over a layer, or over its old forward, would
run the original inside the copy, train it and move its running statistics.
"""

import copy
import dis
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

_HOOKS = "hooks"  # what the names of torch's tables of hooks contain


def copied_closures(model: nn.Module, memo: dict[int, Any]) -> Callable[[], None]:
    """Enter into `memo`, for copy.deepcopy, copies of the functions that hold parts of `model`.

    The copies are empty closures until the function that is returned, to be called once the model
    is copied, fills them with the copies of what they held. Raises ValueError for a function set on
    a module that finds a part of the model in a global variable, or that torch.compile made.

    >>> model = nn.Sequential(nn.Linear(1, 1))
    >>> def patch(layer):
    ...     inner = layer.forward
    ...     layer.forward = lambda x: inner(x)
    >>> patch(model[0])
    >>> memo = {}
    >>> fill = copied_closures(model, memo)
    >>> changed = copy.deepcopy(model, memo)
    >>> fill()
    >>> changed[0].forward.__closure__[0].cell_contents.__self__ is changed[0]
    True
    """
    own = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}
    functions: dict[int, FunctionType] = {}
    for path, module in model.named_modules():
        for name, held in vars(module).items():
            if is_plain(held):  # most of what a module holds
                continue
            is_table = name.startswith("_") and isinstance(held, dict)
            if is_table and _HOOKS not in name:
                continue  # parameters, buffers, children
            for function in _functions_in(held):
                place = f"'{name}' of layer '{path}'" if path else f"'{name}' of the model"
                if not is_table:
                    _refuse(function, own, place)
                if any(_leads_to(part, own, set()) for part in _parts(function)):
                    functions[id(function)] = function
    made = {key: _empty(function) for key, function in functions.items()}
    memo.update(made)

    def fill() -> None:
        for key, function in functions.items():
            _fill(made[key], function, lambda part: _copied(part, own, memo))

    return fill


def is_atom(held: Any) -> bool:
    """Return whether it is a number, a text, None or a tuple of these, which copies share.

    >>> is_atom((3, 3)), is_atom([])
    (True, False)
    """
    kind = type(held)
    return kind in _ATOMS or (kind is tuple and all(type(part) in _ATOMS for part in held))


def is_plain(held: Any) -> bool:
    """Return whether what a module holds is an atom or an empty container: most of it is.

    >>> is_plain({}), is_plain({"": 0}), is_plain(None)
    (True, False, True)
    """
    return is_atom(held) or (type(held) in _CONTAINERS and not held)


_ATOMS = frozenset([bool, int, float, str, type(None), torch.dtype, torch.device])
_CONTAINERS = frozenset([dict, OrderedDict, list, set])


def _functions_in(held: Any, seen: set[int] | None = None) -> Iterator[FunctionType]:
    """Yield the functions that a call of `held` may run: its own, and those in its closures."""
    seen = set() if seen is None else seen
    if id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, FunctionType):
        yield held
    for part in _parts(held):
        yield from _functions_in(part, seen)


def _parts(held: Any) -> list[Any]:
    if isinstance(held, FunctionType):
        defaults = *(held.__defaults__ or ()), *(held.__kwdefaults__ or {}).values()
        return [*_contents(held), *defaults]
    if isinstance(held, MethodType):
        return [held.__func__, held.__self__]
    if isinstance(held, functools.partial):
        return [held.func, *held.args, *held.keywords.values()]
    if isinstance(held, list | tuple | set):
        return [*held]
    if isinstance(held, dict):
        return [*held.values()]
    return []


def _contents(function: FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a name that is not bound yet
            found.append(cell.cell_contents)
    return found


def _leads_to(held: Any, own: set[int], seen: set[int]) -> bool:
    """Return whether `held` is a part of the model, or holds one."""
    if id(held) in own:
        return True
    if id(held) in seen:
        return False
    seen.add(id(held))
    return any(_leads_to(part, own, seen) for part in _parts(held))


def _empty(function: FunctionType) -> FunctionType:
    """Return a function as `function`, whose closure holds nothing yet."""
    cells = tuple(CellType() for _ in function.__closure__ or ())
    made = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    vars(made).update(vars(function))
    return made


def _fill(made: FunctionType, like: FunctionType, copied: Callable[[Any], Any]) -> None:
    for new, old in zip(made.__closure__ or (), like.__closure__ or (), strict=True):
        with suppress(ValueError):  # a name that is not bound yet
            new.cell_contents = copied(old.cell_contents)
    made.__defaults__ = tuple(map(copied, like.__defaults__)) if like.__defaults__ else None
    made.__kwdefaults__ = {name: copied(part) for name, part in (like.__kwdefaults__ or {}).items()}


def _copied(held: Any, own: set[int], memo: dict[int, Any]) -> Any:
    """Return a copy of what leads to the model; all else is shared, as by copy.deepcopy."""
    return copy.deepcopy(held, memo) if _leads_to(held, own, set()) else held


def _refuse(function: FunctionType, own: set[int], place: str) -> None:
    if hasattr(function, "_torchdynamo_orig_callable"):
        raise ValueError(
            f"{place} is compiled, and a copy of it would run the original: leave that to "
            f"model.compile(), or to torch.compile(model), and pass the model as it was before"
        )
    for name in _globals_of(function.__code__):
        found = function.__globals__.get(name)
        if not isinstance(found, type) and _leads_to(found, own, set()):
            raise ValueError(
                f"{place} is a function that finds a part of the model in the global variable "
                f"{name!r}, so a copy of the model would run the original: set "
                f"types.MethodType(function, layer) instead, or give the layer a class of its own"
            )


def _globals_of(code: CodeType) -> Iterator[str]:
    """Yield the names of global variables that the code reads."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)
