"""The operations of plans: the table of them, and the one loop that makes edits.

An edit is the name of an operation, options in plain data, and values: what the model itself does
not hold, such as measured statistics. So a plan, a checkpoint that is loaded again and a fix of the
doctor all go through `make_edits`. Each operation stands where its verb is.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any, Literal, TypeVar, get_args, get_origin

import torch
from torch import Tensor, nn

from bnkit.dataflow import duplicate
from bnkit.deprecation import warn_of
from bnkit.files import is_of
from bnkit.internals import children_of
from bnkit.layers.renorm import Ramp
from bnkit.observation import set_mode

Operation = Callable[..., nn.Module | None]
Registered = TypeVar("Registered", bound=Callable[..., nn.Module | None])

# By name: a function of the model, the path of a layer and options, of which `values` is one where
# the operation takes some. It changes the model in place, or returns what takes its place.
OPERATIONS: dict[str, Operation] = {}


def operation(function: Registered) -> Registered:
    """Enter a function into the table, by its name."""
    OPERATIONS[function.__name__] = function
    return function


@dataclass(frozen=True, eq=False)
class Edit:
    """One layer's change: `layer` is its path in `named_modules`, `kind` the name of its class.

    `action` and `why` say in words what is done. `operation` is the name of a function in
    `OPERATIONS`, `options` its arguments in plain data, and `values` the tensors that it needs and
    the model does not hold, in float64 where they are computed. Two edits are equal if all of this
    is, tensors included.
    """

    layer: str
    kind: str
    action: str
    why: str
    operation: str
    options: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def structure(self) -> dict[str, Any]:
        """What the edit does to the structure of the model, as JSON holds it: no values."""
        return {"operation": self.operation, "layer": self.layer, **_plain(self.options)}

    def change(self, model: nn.Module) -> None:
        """Make this edit in `model` itself: an old name for `make_edits(model, [edit])`."""
        warn_of("Edit.change(model)", "Plan.change(model)")
        make_edits(model, [self])

    def to_json(self, *, values: bool = False) -> dict[str, Any]:
        """Return the edit as plain data, with its `values` only if asked to."""
        named = {"layer": self.layer, "kind": self.kind, "change": self.action, "why": self.why}
        held = {"values": {n: _as_numbers(t) for n, t in self.values.items()}} if values else {}
        return {**named, "structure": self.structure, **held}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Edit":
        """Return the edit that `to_json` wrote; ValueError for one by a function.

        >>> edit = Edit("0", "Dropout", "become Identity", "", "leave_out")
        >>> Edit.from_json(edit.to_json()) == edit
        True
        """
        structure = dict(data["structure"])
        operation, layer = structure.pop("operation", None), structure.pop("layer", None)
        for name in functions_in(structure):
            raise ValueError(
                f"layer '{layer}' was changed by {name!r}, a function, which cannot be saved: "
                f"build the model, change it as before, and load the state dict into it"
            )
        values = {name: _as_tensor(held) for name, held in data.get("values", {}).items()}
        kind, action, why = (data.get(key, "") for key in ("kind", "change", "why"))
        return cls(layer, kind, action, why, operation, _from_plain(structure), values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edit):
            return NotImplemented
        ours, others = self.values, other.values
        return (
            self._words() == other._words()
            and self.options == other.options
            and ours.keys() == others.keys()
            and all(_is_same(tensor, others[name]) for name, tensor in ours.items())
        )

    def __hash__(self) -> int:
        return hash(self._words())

    def _words(self) -> tuple[str, ...]:
        return self.layer, self.kind, self.action, self.why, self.operation


def functions_in(plain: Any) -> Iterator[str]:
    """Yield the names of functions in the plain data of an edit, which holds no more of them.

    >>> list(functions_in({"options": {"r_max": {"callable": "sqrt"}, "d_max": 5.0}}))
    ['sqrt']
    """
    if isinstance(plain, Mapping):
        if [*plain] == ["callable"]:
            yield plain["callable"]
        for value in plain.values():
            yield from functions_in(value)


def _plain(value: Any) -> Any:
    """Return options as what JSON holds: a `Ramp` as its numbers, a function as its name.

    A process group belongs to the process, so it is left out.
    """
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items() if name != "process_group"}
    if isinstance(value, Ramp):
        return {"ramp": asdict(value)}
    if callable(value):
        return {"callable": getattr(value, "__qualname__", type(value).__qualname__)}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _from_plain(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if [*value] == ["ramp"]:
        return Ramp(**value["ramp"])
    return {name: _from_plain(each) for name, each in value.items()}


def _as_numbers(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "numbers": tensor.tolist()}


def _as_tensor(held: Mapping[str, Any]) -> Tensor:
    return torch.tensor(held["numbers"], dtype=getattr(torch, held["dtype"]))


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


# --- the loop


def make_edits(model: nn.Module, edits: Iterable[Edit]) -> nn.Module:
    """Make the edits in `model` itself, one after the other, and return it, or what took its place.

    Raises ValueError, with the number of the edit, for an operation or option that bnkit does not
    know, and for a layer that the model does not have.

    >>> model = nn.Sequential(nn.BatchNorm1d(2))
    >>> edit = Edit("0", "BatchNorm1d", "", "", "set_numbers", {"momentum": 0.01})
    >>> make_edits(model, [edit])[0].momentum
    0.01
    """
    # What is made in inference mode could not be trained.
    with torch.inference_mode(mode=False), knowing_holders(model):
        for number, edit in enumerate(edits, start=1):
            made = _operation_of(edit, model, f"change {number}")(model, edit.layer)
            model = model if made is None else made
    return model


def replay(model: nn.Module, structures: Iterable[Mapping[str, Any]]) -> nn.Module:
    """Return a copy of `model` with the structure that the described changes lead to.

    `structures` are those of the edits of a plan, in order: the name of an "operation", the path
    of a "layer" and the operation's options. A checkpoint of the changed model, which has all keys
    of the copy, brings the values. Raises ValueError as `make_edits` does, and for a change that a
    function made.

    >>> from bnkit.surgery import plan_addition
    >>> def build():
    ...     return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> plan = plan_addition(build(), torch.zeros(2, 8))
    >>> checkpoint = plan.apply(build()).state_dict()
    >>> structures = [edit["structure"] for edit in plan.to_json()["edits"]]
    >>> replay(build(), structures).load_state_dict(checkpoint)
    <All keys matched successfully>
    """
    edits = [Edit.from_json({"structure": structure}) for structure in structures]
    return make_edits(duplicate(model), edits)


def _operation_of(edit: Edit, model: nn.Module, place: str) -> Operation:
    """Return the operation with the options of the edit, once both are known to fit the model."""
    if not isinstance(edit.operation, str) or edit.operation not in OPERATIONS:
        raise ValueError(
            f"{place} is by the operation {edit.operation!r:.60}, which this version of bnkit does "
            f"not know: it knows {', '.join(map(repr, sorted(OPERATIONS)))}"
        )
    if not _has_layer(model, edit.layer):
        raise ValueError(
            f"{place} ({edit.operation}) is of the layer {edit.layer!r:.200}, which the model "
            f"({type(model).__name__}) does not have: build it as it was before the change"
        )
    function = OPERATIONS[edit.operation]
    options = {**edit.options, "values": edit.values} if edit.values else edit.options
    try:
        _signature(function).bind(model, edit.layer, **options)
    except TypeError as error:
        raise ValueError(
            f"{place} ({edit.operation} of the layer {edit.layer!r}): {error}"
        ) from error
    for name, value in edit.options.items():
        wanted = _type_of(function, name)
        if not is_of(value, wanted):
            raise ValueError(
                f"{place} ({edit.operation} of the layer {edit.layer!r}): its {name!r} is "
                f"{value!r:.60}, which is not of the kind that is wanted, {_written(wanted)}"
            )
    return lambda model, layer: function(model, layer, **options)


@functools.cache
def _signature(function: Operation) -> inspect.Signature:
    """Return the signature, also with the options that `showing` states for `**options`."""
    return inspect.signature(function, eval_str=True)


def _type_of(function: Operation, option: str) -> Any:
    parameter = _signature(function).parameters.get(option)
    return Any if parameter is None else parameter.annotation


def _written(kind: Any) -> str:
    """Return a type as a reader knows it: the choices of a Literal, else as Python writes it."""
    if get_origin(kind) is Literal:
        return f"one of {get_args(kind)}"
    return inspect.formatannotation(kind)


def _has_layer(model: nn.Module, path: object) -> bool:
    try:
        return isinstance(path, str) and isinstance(model.get_submodule(path), nn.Module)
    except AttributeError:
        return False


# --- putting another module where one is


class _Holders:
    """Which modules hold each module of `model`, by one walk for all edits of a plan."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._held: dict[nn.Module, list[tuple[nn.Module, str]]] = {}  # nothing before a first edit

    def _note(self, root: nn.Module) -> None:
        seen, ahead = {root}, [root]
        while ahead:
            holder = ahead.pop()
            for name, child in children_of(holder).items():
                if child is None:
                    continue
                self._held.setdefault(child, []).append((holder, name))
                if child not in seen:
                    seen.add(child)
                    ahead.append(child)

    def replace(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        place = self.model.get_submodule(parent), name
        replaced = self.model.get_submodule(path)
        if place not in self._held.get(replaced, ()):  # an edit has put it there by itself
            self._held = {}
            self._note(self.model)
        set_mode(module, training=replaced.training)
        places = [
            (holder, name)
            for holder, name in self._held.pop(replaced)
            if children_of(holder).get(name) is replaced
        ]
        for holder, name in places:
            setattr(holder, name, module)
        self._held.setdefault(module, []).extend(places)
        self._note(module)


_holders: ContextVar[_Holders | None] = ContextVar("_holders", default=None)  # one a thread


@contextmanager
def knowing_holders(model: nn.Module) -> Iterator[None]:
    """Let `replace_module` walk `model` once for the whole block."""
    token = _holders.set(_Holders(model))
    try:
        yield
    finally:
        _holders.reset(token)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at every place of `model` that holds the module at `path` now.

    It takes over the training mode. Raises ValueError for the path "", which is the model itself.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> replace_module(model, "1", nn.Identity())
    >>> model[1]
    Identity()
    """
    if not path:
        raise ValueError("the model itself cannot be replaced: only layers inside it can")
    known = _holders.get()
    holders = known if known is not None and known.model is model else _Holders(model)
    holders.replace(path, module)


# --- the operation that all verbs share


@operation
@torch.no_grad()
def write_values(
    model: nn.Module, layer: str, *, values: Mapping[str, Tensor] | None = None
) -> None:
    """Write values into the parameters and buffers of the layer that have these names.

    A name that the layer does not have is left out. The structure stays as it is.

    >>> model = nn.BatchNorm1d(1)
    >>> write_values(model, "", values={"running_mean": torch.tensor([2.0])})
    >>> model.running_mean
    tensor([2.])
    """
    module = model.get_submodule(layer)
    held = dict(module.named_buffers(recurse=False, remove_duplicate=False))
    held |= dict(module.named_parameters(recurse=False, remove_duplicate=False))
    for name, value in (values or {}).items():
        if name in held:
            held[name].copy_(value)


def check_numbers(*, momentum: float | None, eps: float) -> None:
    """Raise ValueError for a momentum or an eps with which no batch norm can compute.

    >>> check_numbers(momentum=0.1, eps=float("nan"))
    Traceback (most recent call last):
    ValueError: `eps` is nan: pass a finite number of at least 0
    """
    if momentum is not None and not (_is_number(momentum) and 0 <= momentum <= 1):
        raise ValueError(f"`momentum` is {momentum!r}: pass a number from 0 to 1, or None")
    # 0 is that of frozen batch norms in published detectors; torch refuses it in training alone.
    if not (_is_number(eps) and 0 <= eps < math.inf):
        raise ValueError(f"`eps` is {eps!r}: pass a finite number of at least 0")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
