"""Fingerprints of what decides a trial: arrays, structure, source text and data."""

import functools
import hashlib
import importlib.metadata
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

FIRST_BATCHES = 100  # of a user's own loaders are read to tell their data apart


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that name these plain values.

    >>> fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    True
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_model(model: nn.Module) -> str:
    """Return the fingerprint of a model's arrays, structure and the source of its own classes."""
    digest = hashlib.sha256(repr(model).encode())
    for name, array in model.state_dict().items():
        if isinstance(array, Tensor):
            _add_array(digest, name, array)
    own = {type(m) for m in model.modules()} | {b for m in model.modules() for b in type(m).__mro__}
    for source in sorted({source_of(cls) for cls in own if not _is_ours_or_torchs(cls.__module__)}):
        digest.update(source.encode())
    return digest.hexdigest()


def source_of(function: Any) -> str:
    """Return the source text of the file that defines a function or class, else its byte code.

    The whole file, since what a function does depends on what stands around it.
    """
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    module = sys.modules.get(getattr(function, "__module__", ""))
    path = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    if path and Path(path).is_file():
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return repr(_compiled(function))


def of_batches(*loaders: Iterable[Any]) -> str:
    """Return the fingerprint of the first hundred batches of each of these loaders."""
    digest = hashlib.sha256()
    for index, loader in enumerate(loaders):
        for batch in islice(loader, FIRST_BATCHES):
            leaves, structure = torch.utils._pytree.tree_flatten(batch)  # noqa: SLF001  torch's trees
            digest.update(f"{index} {structure}".encode())
            for leaf in leaves:
                if isinstance(leaf, Tensor):
                    _add_array(digest, "", leaf)
                else:
                    digest.update(repr(leaf).encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that may change a number: bnkit's and torch's."""
    return {"bnkit": importlib.metadata.version("bnkit"), "torch": torch.__version__}


def _compiled(thing: Any) -> Any:
    """Return what a function or class is compiled to, without addresses and line numbers."""
    thing = getattr(thing, "__code__", thing)
    match thing:
        case CodeType():
            return thing.co_code, thing.co_names, [_compiled(c) for c in thing.co_consts]
        case frozenset():  # its order differs between processes
            return sorted(map(repr, thing))
        case type() if not _is_ours_or_torchs(thing.__module__):
            own = {n: v for n, v in vars(thing).items() if hasattr(v, "__code__")}
            return thing.__qualname__, {name: _compiled(v) for name, v in own.items()}
    own_class = type(thing)
    return repr(thing) if _is_ours_or_torchs(own_class.__module__) else _compiled(own_class)


def _add_array(digest: Any, name: str, array: Tensor) -> None:
    digest.update(f"{name} {tuple(array.shape)} {array.dtype} ".encode())
    flat = array.detach().cpu().contiguous().flatten()
    digest.update(flat.view(torch.uint8).numpy())


def _is_ours_or_torchs(module: str) -> bool:
    return module.partition(".")[0] in ("bnkit", "torch", "builtins")
