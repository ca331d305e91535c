"""`Dataflow`: the calls of one run of a model, and the values that pass between them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn


class Value(int):
    """A tensor at one moment: an in-place operation makes a new value of the same tensor."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a leaf module or of a torch function, with the values it read and made.

    `name` is the module's path, or the name of the torch function; `module` is None for the
    latter, and `scope` is the path of the module in whose forward it happened. `parameters` names
    the model's parameters and buffers that it was given, `arguments` and `keywords` are what it was
    called with and `result` what it returned: there a tensor stands as its value, a parameter or
    buffer as its name.
    """

    index: int
    name: str
    module: nn.Module | None
    scope: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    parameters: tuple[str, ...] = ()
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None

    @property
    def kind(self) -> str:
        """The name of the module's class, or "function"."""
        return "function" if self.module is None else type(self.module).__name__

    def __str__(self) -> str:
        if self.module is not None:
            return f"'{self.name}' ({self.kind})"
        return f"{self.name}()" + (f" in '{self.scope}'" if self.scope else "")


@dataclass(frozen=True, eq=False)
class Dataflow:
    """All calls of one run in order, the shape of every value, and which values leave the model.

    `dtypes` are those of all floating-point numbers that torch functions made.
    """

    calls: tuple[Call, ...]
    shapes: Mapping[Value, tuple[int, ...]]
    outputs: frozenset[Value]
    dtypes: frozenset[torch.dtype] = frozenset()

    def of(self, copy: nn.Module) -> "Dataflow":
        """Return the same dataflow with the modules of another copy of the model.

        >>> model, copy = nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())
        >>> call = Call(0, "0", model[0], "", (), ())
        >>> Dataflow((call,), {}, frozenset()).of(copy).calls[0].module is copy[0]
        True
        """
        calls = (
            call if call.module is None else replace(call, module=copy.get_submodule(call.name))
            for call in self.calls
        )
        return replace(self, calls=tuple(calls))

    def readers(self, value: Value) -> Sequence[Call]:
        """Return the calls that read this value, in order."""
        return self._readers.get(value, ())

    def calls_of(self, path: str) -> Sequence[Call]:
        """Return the calls of the leaf module at this path, in order."""
        return self._calls_of.get(path, ())

    def calls_reading(self, path: str) -> Sequence[Call]:
        """Return the torch functions that were given parameters of the module at this path."""
        return self._calls_reading.get(path, ())

    def following(self, call: Call) -> Iterator[Call]:
        """Yield the calls that read what this call made, each once."""
        seen = {reader.index: reader for value in call.outputs for reader in self.readers(value)}
        yield from seen.values()

    def leaves(self, call: Call) -> bool:
        """Return whether something that this call made is an output of the model."""
        return not self.outputs.isdisjoint(call.outputs)

    @cached_property
    def _readers(self) -> Mapping[Value, Sequence[Call]]:
        readers: dict[Value, list[Call]] = defaultdict(list)
        for call in self.calls:
            for value in dict.fromkeys(call.inputs):
                readers[value].append(call)
        return readers

    @cached_property
    def _calls_of(self) -> Mapping[str, Sequence[Call]]:
        calls: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            if call.module is not None:
                calls[call.name].append(call)
        return calls

    @cached_property
    def _calls_reading(self) -> Mapping[str, Sequence[Call]]:
        calls: dict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            for path in dict.fromkeys(name.rpartition(".")[0] for name in call.parameters):
                calls[path].append(call)
        return calls
