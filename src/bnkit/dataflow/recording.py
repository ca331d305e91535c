"""`Recorder`: writes down the calls of a run as they happen.

Module calls arrive through hooks, all other torch calls through a `TorchFunctionMode`.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnkit.dataflow.calls import Call, Dataflow, Value
from bnkit.roles import is_leaf

_READS = frozenset(  # calls that take a tensor's numbers out of torch
    ["item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"]
)


class Recorder(TorchFunctionMode):
    """Writes down the calls as they happen. Module calls arrive by hooks, others by the mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.shapes: dict[Value, tuple[int, ...]] = {}
        self.values: dict[int, Value] = {}  # id of a tensor -> what it holds now
        self.alive: dict[int, list[Tensor]] = defaultdict(list)  # by storage; no id is used twice
        self.scopes: list[tuple[str, list[Tensor], list[int]]] = []
        self.leaf: str | None = None
        named = [*model.named_parameters(), *model.named_buffers()]
        self.parameters = {id(tensor): name for name, tensor in named}

    # --- module calls

    def enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [] if self.leaf is not None else _tensors((args, kwargs))
        self.scopes.append((path, tensors, [_version(t) for t in tensors]))
        if self.leaf is None and is_leaf(module):
            self.leaf = path

    def leave(self, path: str, module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        while self.scopes[-1][0] != path:  # a forward that failed, and whose caller went on
            self._close()
        tensors, versions, leaf = self._close()
        if leaf:
            self._record(path, module, tensors, versions, output)

    def _close(self) -> tuple[list[Tensor], list[int], bool]:
        path, tensors, versions = self.scopes.pop()
        leaf = self.leaf == path
        self.leaf = None if leaf else self.leaf
        return tensors, versions, leaf

    # --- torch calls

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        keywords = kwargs or {}
        if self.leaf is not None:
            return func(*args, **keywords)
        tensors = _tensors((args, keywords))
        versions = [_version(t) for t in tensors]
        output = func(*args, **keywords)
        self._record(_name(func), None, tensors, versions, output, args, keywords)
        return output

    # --- values

    def introduce(self, inputs: Any) -> None:
        for tensor in _tensors(inputs):
            self._new_value(tensor)

    def _record(
        self,
        name: str,
        module: nn.Module | None,
        tensors: list[Tensor],
        versions: list[int],
        output: Any,
        args: tuple[Any, ...] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> None:
        made = _tensors(output)
        changed = [t for t, v in zip(tensors, versions, strict=True) if _version(t) != v]
        if not (made or changed or name in _READS):
            return
        inputs = tuple(self._value(t) for t in tensors if id(t) not in self.parameters)
        arguments = self._as_values(args), self._as_values(dict(keywords or {}))
        made += [t for t in self._sharing_memory(changed) if all(t is not m for m in made)]
        self.calls.append(
            Call(
                index=len(self.calls),
                name=name,
                module=module,
                scope=self.scopes[-1][0] if self.scopes else "",
                inputs=inputs,
                outputs=tuple(self._new_value(t) for t in made),
                parameters=tuple(
                    self.parameters[id(t)] for t in tensors if id(t) in self.parameters
                ),
                arguments=arguments[0],
                keywords=arguments[1],
            )
        )

    def _value(self, tensor: Tensor) -> Value:
        known = self.values.get(id(tensor))
        return self._new_value(tensor) if known is None else known

    def _new_value(self, tensor: Tensor) -> Value:
        value = Value(len(self.shapes))
        self.shapes[value] = tuple(tensor.shape)
        if id(tensor) not in self.values:
            self.alive[_memory(tensor)].append(tensor)
        self.values[id(tensor)] = value
        return value

    def _sharing_memory(self, changed: Iterable[Tensor]) -> list[Tensor]:
        """Return every known tensor that a write into these has changed: themselves and views."""
        return [t for memory in {_memory(t) for t in changed} for t in self.alive[memory]]

    def _as_values(self, arguments: Any) -> Any:
        def replace(item: Any) -> Any:
            return self.values.get(id(item)) if isinstance(item, Tensor) else item

        return torch.utils._pytree.tree_map(replace, arguments)  # noqa: SLF001  torch's own trees

    # --- the end

    def dataflow(self, result: Any) -> Dataflow:
        returned = {self.values[id(t)] for t in _tensors(result) if id(t) in self.values}
        outputs = returned or self._unread()
        return Dataflow(tuple(self.calls), self.shapes, frozenset(outputs))

    def _unread(self) -> set[Value]:
        """Return what nobody reads: the outputs of a model that returns no tensor we can find."""
        read = {value for call in self.calls for value in call.inputs}
        return {value for call in self.calls for value in call.outputs} - read

    def explain(self, error: Exception, inputs: Any) -> str:
        shapes = ", ".join(str(tuple(t.shape)) for t in _tensors(inputs))
        path, *_ = self.scopes[-1] if self.scopes else ("",)
        where = f"in layer '{path}'" if path else "in the model's own forward"
        return (
            f"the model fails on `example` of shape {shapes or 'unknown'} {where}: "
            f"{type(error).__name__}: {error}"
        )


def _name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":  # an attribute such as x.mT
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return name


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001  no public name


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)  # noqa: SLF001


def _tensors(tree: Any) -> list[Tensor]:
    """Return the tensors in any nest of containers, dataclasses and objects of other libraries."""
    found: dict[int, Tensor] = {}
    visited: set[int] = set()

    def visit(item: Any) -> None:
        if isinstance(item, Tensor):
            found[id(item)] = item
        elif id(item) not in visited and not isinstance(item, str | bytes | type | nn.Module):
            visited.add(id(item))
            for part in _parts(item):
                visit(part)

    visit(tree)
    return list(found.values())


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, Mapping):
        return item.values()
    if isinstance(item, list | tuple | set | frozenset):
        return item
    if dataclasses.is_dataclass(item):
        return [getattr(item, f.name) for f in dataclasses.fields(item)]
    return getattr(item, "__dict__", {}).values() if not callable(item) else ()
