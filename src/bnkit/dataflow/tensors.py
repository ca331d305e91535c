"""The tensors in what modules and functions take and return, and what is asked of each of them."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.internals import memory_of, replace_tensors, version_of

__all__ = ["Search", "memory_of", "replace_tensors", "shape_of", "tensors_in", "version_of"]

_ATOMS = (str, bytes, int, float, complex, type, type(None), torch.dtype, torch.device, nn.Module)


# An object of more objects than these is looked through once. A smaller one is looked through each
# time that it is handed on: a cache that holds no tensor yet may hold some at the next call.
_LARGE = 1000


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in any nest of containers, dataclasses and objects of other libraries.

    >>> tensors_in({"scores": torch.ones(2), "others": [torch.zeros(1), "text"]})
    [tensor([1., 1.]), tensor([0.])]
    """
    return Search().tensors_in(tree)


class Search:
    """Finds tensors, as `tensors_in` does, in one nest after the other.

    An object of over 1,000 objects, such as a config that each layer is given, is looked through
    once: from then on only those of its objects that held a tensor. It is kept alive until then.
    """

    def __init__(self) -> None:
        self.visits = 0  # objects looked into so far
        self._large: dict[int, tuple[Any, list[Any]]] = {}  # id -> the object, and its holders

    def tensors_in(self, tree: Any) -> list[Tensor]:
        """Return the tensors in `tree`, each once."""
        walk = _Walk(self._large)
        walk.look_into((tree,))
        self.visits += len(walk.visited) - 1  # without this tuple
        return list(walk.found.values())


class _Walk:
    def __init__(self, large: dict[int, tuple[Any, list[Any]]]) -> None:
        self.large = large
        self.found: dict[int, Tensor] = {}
        # id -> the object, kept alive so that no other gets its id, and its number in this walk
        self.visited: dict[int, tuple[Any, int]] = {}
        self.holders: list[Any] = []  # of tensors, in order

    def look_into(self, item: Any) -> int:
        """Find the tensors in `item`; return the lowest number of the objects that it leads to."""
        number = lowest = len(self.visited)
        self.visited[id(item)] = item, number
        first, holds = len(self.holders), False
        for part in _parts(item):
            if isinstance(part, Tensor):
                self.found[id(part)], holds = part, True
            elif isinstance(part, _ATOMS):
                continue
            elif id(part) in self.visited:
                lowest = min(lowest, self.visited[id(part)][1])
            elif id(part) in self.large:
                self._take_from(self.large[id(part)][1])
            else:
                lowest = min(lowest, self.look_into(part))
        if holds:
            self.holders.insert(first, item)
        # What leads to objects visited before it, as a child to its parent, would be known without
        # the tensors in those.
        if len(self.visited) - number > _LARGE and lowest == number:
            self.large[id(item)] = item, self.holders[first:]
        return lowest

    def _take_from(self, holders: list[Any]) -> None:
        for holder in holders:
            tensors = [part for part in _parts(holder) if isinstance(part, Tensor)]
            self.found.update((id(tensor), tensor) for tensor in tensors)
        self.holders += holders


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
