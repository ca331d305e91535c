"""The tensors in what modules and functions take and return, and what is asked of each of them."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.internals import memory_of, replace_tensors, version_of

__all__ = ["memory_of", "replace_tensors", "shape_of", "tensors_in", "version_of"]

_ATOMS = (str, bytes, int, float, complex, type, type(None), torch.dtype, torch.device, nn.Module)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in any nest of containers, dataclasses and objects of other libraries.

    >>> tensors_in({"scores": torch.ones(2), "others": [torch.zeros(1), "text"]})
    [tensor([1., 1.]), tensor([0.])]
    """
    found: dict[int, Tensor] = {}
    visited: dict[int, Any] = {}  # kept alive, so that no other object gets their ids
    _visit(tree, found, visited)
    return list(found.values())


def _visit(item: Any, found: dict[int, Tensor], visited: dict[int, Any]) -> None:
    # No closure, which would refer to itself and keep what it found until garbage is collected.
    if isinstance(item, Tensor):
        found[id(item)] = item
    elif id(item) not in visited and not isinstance(item, _ATOMS):
        visited[id(item)] = item
        for part in _parts(item):
            _visit(part, found, visited)


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape, () for a tensor that has none (a nested one)."""
    try:
        return tuple(tensor.shape)
    except RuntimeError:
        return ()


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, Mapping):
        return item.values()
    if isinstance(item, list | tuple | set | frozenset):
        return item
    if dataclasses.is_dataclass(item):
        return [getattr(item, field.name, None) for field in dataclasses.fields(item)]
    return () if callable(item) else _attributes(item)


def _attributes(item: Any) -> Iterable[Any]:
    slots = (slot for base in type(item).__mro__ for slot in vars(base).get("__slots__", ()))
    return [*getattr(item, "__dict__", {}).values(), *(getattr(item, slot, None) for slot in slots)]
