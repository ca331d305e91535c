"""`Recorder`: writes down the calls of a run as they happen.

Module calls arrive through hooks, all other torch calls through a `TorchFunctionMode`.
"""

import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnkit.dataflow.calls import Call, Dataflow, Value
from bnkit.dataflow.tensors import (
    Search,
    memory_of,
    replace_tensors,
    shape_of,
    tensors_in,
    version_of,
)
from bnkit.roles import is_leaf

# Calls that take a tensor's numbers out of torch; with the first ones they leave the model.
_HAND_OUT = frozenset(["numpy", "tolist", "__array__"])
_READ = _HAND_OUT | {"item", "__bool__", "__int__", "__float__", "__index__"}
# Calls that ask a tensor for its shape, dtype and device only: the first ones all, the others all
# but their first argument.
_LIKE = frozenset(
    """
    empty_like full_like ones_like rand_like randint_like randn_like zeros_like
    new_empty new_empty_strided new_full new_ones new_tensor new_zeros
    """.split()
)
_AS = frozenset(["expand_as", "reshape_as", "to", "type_as", "view_as"])

_Living = dict[int, dict[int, "weakref.ref[Tensor]"]]  # by memory, then by the tensor's id


class Recorder(TorchFunctionMode):
    """Writes down the calls as they happen. Module calls arrive by hooks, others by the mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.shapes: dict[Value, tuple[int, ...]] = {}
        self.values: dict[int, Value] = {}  # id of a tensor -> what it holds now
        self.alive: _Living = defaultdict(dict)
        self.precisions = Precisions()
        self.search = Search()
        self.scopes: list[tuple[str, _Reading]] = []
        self.leaf: str | None = None
        self.failure: tuple[BaseException, str] | None = None
        named = [*model.named_parameters(), *model.named_buffers()]
        self.parameters = {id(tensor): name for name, tensor in named}
        self.owned = named  # alive too, also those that the model replaces while it runs

    # --- module calls

    def enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        # What happens inside a leaf module is one call, so only the outermost leaf begins one. Its
        # inputs are noted here, before its forward can write into them.
        begins = self.leaf is None and is_leaf(module)
        if begins:
            self.leaf = path
        self.scopes.append((path, self._reading((args, kwargs) if begins else ())))

    def leave(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._notice_failure(f"layer '{path}' ({type(module).__name__})" if path else "")
        if not self.scopes or self.scopes[-1][0] != path:
            return  # a hook of its own refused the input, so its forward never began
        _, reading = self.scopes.pop()
        if self.leaf == path:
            self.leaf = None
            self._record(path, module, reading, output, args, kwargs)

    def _notice_failure(self, place: str) -> None:
        """Keep the innermost place that the exception in flight has passed."""
        error = sys.exception()
        if error is not None and (self.failure is None or self.failure[0] is not error):
            self.failure = error, place

    # --- torch calls

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        keywords = kwargs or {}
        if self.leaf is not None:  # part of the leaf's own call
            output = func(*args, **keywords)
            self.precisions.note(output)
            return output
        name = _name(func)
        reading = self._reading(_read_arguments(name, args, keywords))
        output = func(*args, **keywords)
        self.precisions.note(output)
        self._record(name, None, reading, output, args, keywords)
        return output

    # --- values

    def _reading(self, tree: Any) -> "_Reading":
        tensors = self.search.tensors_in(tree)
        return _Reading(tensors, [version_of(t) for t in tensors])

    def introduce(self, inputs: Any) -> None:
        for tensor in self.search.tensors_in(inputs):
            self._new_value(tensor)

    def _record(
        self,
        name: str,
        module: nn.Module | None,
        reading: "_Reading",
        output: Any,
        args: tuple[Any, ...],
        keywords: Mapping[str, Any],
    ) -> None:
        # Versions tell which of its arguments the call wrote into: those are made anew by it.
        changed = reading.changed()
        made = self.search.tensors_in(output)
        if module is None:
            # A function that returns its input as it was (contiguous, requires_grad_) did nothing.
            made = [t for t in made if not reading.holds_unchanged(t)]
        if not (made or changed or name in _READ):  # a question, such as x.dim()
            return
        inputs = tuple(self._value(t) for t in reading.tensors if not self._is_constant(t))
        parameters = tuple(
            self.parameters[id(t)] for t in reading.tensors if id(t) in self.parameters
        )
        # The arguments as they were read: an in-place write gets its new value only below.
        arguments, named = self._as_values(args), self._as_values(dict(keywords))
        # A write into a tensor is also one into its base and its views: all get a new value.
        made += [t for t in self._sharing_memory(changed) if all(t is not m for m in made)]
        outputs = tuple(self._new_value(t) for t in made)
        self.calls.append(
            Call(
                index=len(self.calls),
                name=name,
                module=module,
                scope=self.scopes[-1][0] if self.scopes else "",
                inputs=inputs,
                outputs=outputs,
                parameters=parameters,
                arguments=arguments,
                keywords=named,
                result=self._as_values(output),
            )
        )

    def _is_constant(self, tensor: Tensor) -> bool:
        """Return whether it is a parameter or buffer into which the model has written nothing."""
        return id(tensor) in self.parameters and id(tensor) not in self.values

    def _value(self, tensor: Tensor) -> Value:
        known = self.values.get(id(tensor))
        return self._new_value(tensor) if known is None else known

    def _new_value(self, tensor: Tensor) -> Value:
        value = Value(len(self.shapes))
        self.shapes[value] = shape_of(tensor)
        if id(tensor) not in self.values:
            self._follow(tensor)
        self.values[id(tensor)] = value
        return value

    def _follow(self, tensor: Tensor) -> None:
        """Know the tensor while it lives; afterwards its id and its memory may be another's.

        Keeping all of them alive would cost the model's forward again: every page of memory is
        then a fresh one.
        """
        # The closure holds dictionaries, not `self`: no tensor keeps the recorder alive.
        key, values, sharing = id(tensor), self.values, self.alive[memory_of(tensor)]

        def forget(_: object) -> None:
            del values[key], sharing[key]

        sharing[key] = weakref.ref(tensor, forget)

    def _sharing_memory(self, changed: Iterable[Tensor]) -> list[Tensor]:
        """Return every known tensor that a write into these has changed: themselves and views."""
        refs = [
            r for memory in {memory_of(t) for t in changed} for r in self.alive[memory].values()
        ]
        return [tensor for ref in refs if (tensor := ref()) is not None]

    def _as_values(self, tree: Any) -> Any:
        def replacement(tensor: Tensor) -> Value | str | None:
            if self._is_constant(tensor):
                return self.parameters[id(tensor)]
            return self.values.get(id(tensor))

        return replace_tensors(tree, replacement)

    # --- the end

    def dataflow(self, result: Any) -> Dataflow:
        """Return what was written down, of a run that returned `result`."""
        returned = {self.values[id(t)] for t in tensors_in(result) if id(t) in self.values}
        handed_out = {v for call in self.calls if call.name in _HAND_OUT for v in call.inputs}
        # Classes of outputs that are not containers hide their tensors: then what has no reader is
        # the output. What went to NumPy has left the model too.
        outputs = (returned or self._unread()) | handed_out
        dtypes = frozenset(self.precisions.seen)
        return Dataflow(tuple(self.calls), self.shapes, frozenset(outputs), dtypes)

    def _unread(self) -> set[Value]:
        """Return what no call reads: the outputs of a model whose own are not found as tensors."""
        read = {value for call in self.calls for value in call.inputs}
        return {value for call in self.calls for value in call.outputs} - read

    def explain(self, error: Exception, inputs: Any) -> str:
        """Return one sentence on an error that ended the run."""
        shapes = ", ".join(str(shape_of(t)) for t in tensors_in(inputs))
        place = self.failure[1] if self.failure is not None and self.failure[0] is error else ""
        return (
            f"the model fails on `example` of shape {shapes or 'unknown'} in "
            f"{place or 'its own forward'}: {type(error).__name__}: {error}"
        )


@dataclass(frozen=True)
class _Reading:
    """The tensors that a call is given, and which version of each it reads."""

    tensors: list[Tensor]
    versions: list[int]

    def changed(self) -> list[Tensor]:
        pairs = zip(self.tensors, self.versions, strict=True)
        return [tensor for tensor, version in pairs if version_of(tensor) != version]

    def holds_unchanged(self, tensor: Tensor) -> bool:
        pairs = zip(self.tensors, self.versions, strict=True)
        same = any(t is tensor and version_of(t) == version for t, version in pairs)
        return same and not tensor.is_inference()  # of those torch counts no versions


def _read_arguments(name: str, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    if name in _LIKE:
        return ()
    return args[:1] if name in _AS else (args, keywords)


def _name(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":  # an attribute such as x.mT
        name = str(getattr(getattr(func, "__self__", None), "__name__", name))
    return name.partition(".")[0]  # torch.ops.aten.relu.default


# Dtypes


@dataclass(eq=False)
class Precisions(TorchFunctionMode):
    """Notes in `seen` the dtypes of all floating-point numbers that torch functions make.

    >>> with Precisions() as precisions:
    ...     _ = torch.ones(2).double().argmax()
    >>> precisions.seen == {torch.float32, torch.float64}
    True
    """

    seen: set[torch.dtype] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.note(output)
        return output

    def note(self, output: Any) -> None:
        """Note the dtypes of what a torch function made."""
        for made in output if isinstance(output, tuple | list) else (output,):
            if isinstance(made, Tensor) and (made.is_floating_point() or made.is_complex()):
                self.seen.add(made.dtype)
