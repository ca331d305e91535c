"""Source code as text and fingerprints, which change when the code may do something else."""

import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bnkit.platforms import PROCESS_BEGUN

PLAIN = (str, bytes, int, float, complex, type(None), type(...))
STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))


def source_of(thing: Any) -> str:
    """Return the source of a function or class of the user's own, and the values that it carries.

    The source is whole files, since what a function does depends on what stands around it: the
    file that defines it, and those of one's own that this imports, at any depth. Code that was
    typed into a session has no file: its byte code stands for it, and that of what it refers to.
    The values are defaults, closures, the arguments of a `functools.partial`, and what a module
    holds.

    >>> width = 8
    >>> narrow = source_of(lambda: width)
    >>> width = 9
    >>> source_of(lambda: width) == narrow
    False
    """
    return "\n".join(_texts(thing, {}))


def own_sources() -> dict[str, str]:
    """Return a fingerprint of the file of each module of one's own that is imported, by its name.

    The program itself is not among them, since its functions are sent by value.
    """
    found = {}
    for name, module in [*sys.modules.items()]:
        if name != "__main__" and _file(module) and not _is_library(module):
            with suppress(OSError):  # deleted meanwhile
                found[name] = hashlib.sha256(Path(_file(module)).read_bytes()).hexdigest()
    return found


def modules_beside(*things: Any) -> list[str]:
    """Return the names of the loaded modules of one's own that lie where these functions lie.

    That is in the folder of their file, of a package the topmost one: what a function imports while
    it runs is among them. Of a `functools.partial` all parts count.

    >>> modules_beside(fingerprint_within_module)
    []
    """
    folders = {_folder(home) for thing in things for home in _own_homes(thing)}
    names = [name for name in own_sources() if sys.modules[name] is not None]
    return [name for name in names if folders.intersection(_path(sys.modules[name]).parents)]


def own_modules() -> list[ModuleType]:
    """Return the modules whose files `own_sources` reads, for their code to be sent by value.

    Raises ValueError for one whose file was edited after the program began: it may hold other code.
    """
    found = [sys.modules[name] for name in own_sources()]
    for module in found:
        if Path(_file(module)).stat().st_mtime > PROCESS_BEGUN:
            raise ValueError(
                f"the file of module {module.__name__!r} was edited after this program began, so "
                f"its code cannot be sent by value: start the program again"
            )
    return found


def record_sources() -> None:
    """Let `loaded_sources` know the modules of one's own that are imported from now on."""
    if not any(isinstance(finder, _RecordingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RecordingFinder())


def loaded_sources() -> dict[str, str]:
    """Return what `own_sources` does, but of the text that was compiled, whatever is there now."""
    return {**_RecordingLoader.sources}


class _RecordingLoader(SourceFileLoader):
    """Compiles a module from its text, whatever byte code is kept of it, and notes the text."""

    sources: ClassVar[dict[str, str]] = {}

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        text = self.get_data(path)
        self.sources[fullname] = hashlib.sha256(text).hexdigest()
        code: CodeType = self.source_to_code(text, path)
        return code


class _RecordingFinder(MetaPathFinder):
    """Finds modules as the other finders do, and has one's own loaded by a `_RecordingLoader`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if type(spec.loader) is SourceFileLoader and not _is_of_library(
                    fullname, spec.loader.path
                ):
                    spec.loader = _RecordingLoader(fullname, spec.loader.path)
                return spec
        return None


def _own_homes(thing: Any) -> list[ModuleType]:
    if isinstance(thing, functools.partial):
        parts = [thing.func, *thing.args, *thing.keywords.values()]
        return [home for part in parts if callable(part) for home in _own_homes(part)]
    module = _module_of(thing if hasattr(thing, "__qualname__") else type(thing))
    return [] if module is None or not _file(module) or _is_library(module) else [module]


def _folder(module: ModuleType) -> Path:
    """Return the folder of the module's file, or of the topmost package that it belongs to."""
    above = module.__name__.count(".") - (not hasattr(module, "__path__"))
    return _path(module).parents[max(above, 0)]


def _path(module: ModuleType) -> Path:
    return Path(_file(module)).absolute()


def fingerprint_within_module(function: Callable[..., Any]) -> str:
    """Return a fingerprint of a function's source and of what it uses from its own module.

    What stands around them, such as texts and other functions, does not count, and neither does
    what they use from other modules.

    >>> len(fingerprint_within_module(source_of))
    16
    """
    digest = hashlib.sha256()
    for text in _texts_within_module(function, {}):
        digest.update(text.encode())
    return digest.hexdigest()[:16]


def bytes_of(array: Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order."""
    return array.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _texts(thing: Any, seen: dict[int, Any]) -> Iterator[str]:
    if isinstance(thing, PLAIN):
        yield repr(thing)
    elif id(thing) not in seen:
        seen[id(thing)] = thing  # kept, so that no other object gets its id
        if isinstance(thing, ModuleType) and _file(thing):
            yield _text(thing)
        for part in _parts(thing):
            yield from _texts(part, seen)


def _parts(thing: Any) -> Iterable[Any]:  # noqa: C901, PLR0911, PLR0912  a line for each kind
    """Return what decides what a thing does: plain values, and things that have parts in turn."""
    match thing:
        case ModuleType():
            return _neighbours(thing)
        case FunctionType():
            home = _home(thing) or (thing.__code__, _globals_of(thing))
            carried = thing.__defaults__, thing.__kwdefaults__, thing.__closure__
            return thing.__qualname__, *home, *carried
        case type():
            return thing.__qualname__, *(_home(thing) or (*thing.__bases__, vars(thing)))
        case CodeType():
            return thing.co_code, thing.co_names, thing.co_consts
        case functools.partial():
            return thing.func, thing.args, thing.keywords
        case MethodType():
            return thing.__func__, thing.__self__
        case staticmethod() | classmethod():
            return (thing.__func__,)
        case property():
            return thing.fget, thing.fset
        case Mapping():
            return [part for item in thing.items() for part in item]
        case list() | tuple():
            return thing
        case set() | frozenset():
            return sorted(map(repr, thing))
        case Tensor():
            return tuple(thing.shape), hashlib.sha256(bytes_of(thing)).hexdigest()
        case np.ndarray():
            return thing.shape, hashlib.sha256(thing.tobytes()).hexdigest()
        case CellType():
            return (thing.cell_contents,) if thing != CellType() else ()
    # A library's module has settings, such as the class weights of a loss, or those of a metric.
    if _is_own(type(thing)) or isinstance(thing, nn.Module):
        return type(thing), getattr(thing, "__dict__", None)
    named = getattr(thing, "__qualname__", type(thing).__qualname__)
    return named, getattr(thing, "__wrapped__", None)  # such as functools.cache leaves behind


def _home(thing: Any) -> tuple[Any, ...]:
    """Return the module whose file defines this function or class; none if there is no file."""
    scope = getattr(thing, "__globals__", None)
    module = sys.modules.get(scope.get("__name__", "") if scope else thing.__module__)
    if module is None or not _file(module):
        return ()
    return (module,) if scope is None or scope is vars(module) else ()


def _neighbours(module: ModuleType) -> Iterable[ModuleType]:
    """Return the modules of one's own that a module of one's own has taken something from."""
    if _is_library(module):
        return ()
    found = {}
    for value in vars(module).values():
        other = value if isinstance(value, ModuleType) else _module_of(value)
        if other is not None:
            found[other.__name__] = other
    # Each is asked once: a large module takes hundreds of things from few others.
    return [found[name] for name in sorted(found) if not _is_library(found[name])]


def _module_of(thing: Any) -> ModuleType | None:
    name = getattr(thing, "__module__", None)
    return sys.modules.get(name) if isinstance(name, str) else None


def _is_own(cls: type) -> bool:
    module = _module_of(cls)  # that of a session has no spec, unlike those that are built in
    return module is not None and (module.__spec__ is None or not _is_library(module))


def _is_library(module: ModuleType) -> bool:
    return not _file(module) or _is_of_library(module.__name__, _file(module))


@functools.cache
def _is_of_library(name: str, file: str) -> bool:
    path = Path(file)
    installed = {"site-packages", "dist-packages"}.intersection(path.parts)
    ours = name.partition(".")[0] in ("bnkit", "torch")
    return bool(installed) or path.is_relative_to(STANDARD_LIBRARY) or ours


def _text(module: ModuleType) -> str:
    return Path(_file(module)).read_text(encoding="utf-8", errors="replace")


def _file(module: ModuleType) -> str:
    """Return the path of a module's Python file; "" for a session and what is built in.

    "" also for a program whose file was edited after it began: its byte code stands for it.
    """
    path = getattr(module, "__file__", None) or ""
    if not Path(path).is_file() or path.endswith(tuple(EXTENSION_SUFFIXES)):
        return ""
    edited = module.__name__ == "__main__" and Path(path).stat().st_mtime > PROCESS_BEGUN
    return "" if edited else path


def _texts_within_module(thing: Any, seen: dict[int, Any]) -> Iterator[str]:
    if id(thing) in seen:
        return
    seen[id(thing)] = thing  # kept, so that no other object gets its id
    if not (inspect.isfunction(thing) or inspect.isclass(thing)):
        yield repr(thing)
        return
    yield inspect.getsource(thing)
    module = inspect.getmodule(thing)
    functions = [thing] if inspect.isfunction(thing) else vars(thing).values()
    for code in [function.__code__ for function in functions if inspect.isfunction(function)]:
        for name in sorted(_names(code)):
            used = vars(module).get(name)
            is_code = inspect.isfunction(used) or inspect.isclass(used)
            is_plain = isinstance(used, int | float | str | tuple)
            if is_plain or (is_code and inspect.getmodule(used) is module):
                yield from _texts_within_module(used, seen)


def _globals_of(function: FunctionType) -> dict[str, Any]:
    names = sorted(_names(function.__code__))
    return {name: function.__globals__[name] for name in names if name in function.__globals__}


def _names(code: CodeType) -> set[str]:
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)
