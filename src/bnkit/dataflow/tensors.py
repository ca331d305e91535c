"""The tensors in what modules and functions take and return, and what is asked of each of them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

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


def replace_tensors(tree: Any, replacement: Callable[[Tensor], Any]) -> Any:
    """Return `tree` with `replacement(tensor)` for each tensor in its tuples, lists and dicts."""
    # Torch's own trees, which have no public name yet.
    return torch.utils._pytree.tree_map_only(Tensor, replacement, tree)  # noqa: SLF001


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape, () for a tensor that has none (a nested one)."""
    try:
        return tuple(tensor.shape)
    except RuntimeError:
        return ()


def version_of(tensor: Tensor) -> int:
    """Return the number that grows with each write into the tensor; torch counts none in some."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001  no public name


def memory_of(tensor: Tensor) -> int:
    """Return a number that tensors have in common which share memory."""
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  no public name
    except RuntimeError:  # sparse, or inside of torch.vmap
        return id(tensor)


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
