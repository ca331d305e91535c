"""`duplicate`: a deep copy of a model, which runs nothing of the original; or why there is none."""

import copy
import copyreg
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from bnkit.dataflow.closures import copied_closures, is_atom, is_plain
from bnkit.dataflow.sharding import (
    copy_without_shards,
    is_sharded,
    own_attributes,
    refuse_sharded,
)
from bnkit.dataflow.tensors import tensors_in, version_of
from bnkit.internals import inside_compiled
from bnkit.observation import NotEnoughMemoryError, memory_explained, preserved_random_state


def whole(model: nn.Module) -> nn.Module:
    """Return `model`; where it is sharded over ranks, a plain copy with all of its values.

    Each rank brings its parts, so all of them must call this. Raises what `duplicate` raises.

    >>> model = nn.Linear(2, 2)
    >>> whole(model) is model
    True
    """
    return duplicate(model, gathers=True) if is_sharded(model) else model


def duplicate(model: nn.Module, *, gathers: bool = False) -> nn.Module:
    """Return a deep copy; TypeError or ValueError, with what to do, where none is possible.

    It is what copy.deepcopy makes, in a fraction of the time, but that functions set on layers
    follow their layers into it, and that tensors with a history are copied without it. A model that
    is sharded over ranks has none, or with `gathers` a plain one with all values, for which all
    ranks must call this. Raises NotEnoughMemoryError where there is no room for one.

    >>> duplicate(nn.DataParallel(nn.Linear(2, 2)))
    Traceback (most recent call last):
    TypeError: the model is a DataParallel: pass its .module, and wrap the result
    """
    refuse_keras(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` is a {type(model).__name__}: pass a torch.nn.Module")
    for path, module in model.named_modules():
        _refuse_uncopiable(f"layer '{path}'" if path else "the model", module)
    refuse_sharded(model, gathers=gathers)
    sharded = gathers and is_sharded(model)
    memo = _copies_of_computed_tensors(model, own_attributes if sharded else vars)
    fill = copied_closures(model, memo)
    try:
        # A copy made in inference mode could not be trained; one made by a constructor draws.
        with torch.inference_mode(mode=False), preserved_random_state(), memory_explained():
            if sharded:
                copy_without_shards(model, memo)
            made: nn.Module = _Copier(memo).copy(model)
            fill()
            return made
    except NotEnoughMemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"`model` ({type(model).__name__}) cannot be copied: {error}. bnkit changes a copy and "
            f"leaves yours alone, so copy.deepcopy(model) must work"
        ) from error


def state_of(model: nn.Module) -> list[tuple[int, int]]:
    """Return which parameters and buffers `model` holds, and how often each was written into.

    Where it is another after a copy has run, the copy shares something with the original.

    >>> model = nn.BatchNorm1d(2)
    >>> before = state_of(model)
    >>> _ = model.running_mean.zero_()
    >>> state_of(model) == before
    False
    """
    return [(id(t), version_of(t)) for t in (*model.parameters(), *model.buffers())]


# --- the copy itself: modules and their tables are copied here, all else by copy.deepcopy


@dataclass
class _Copier:
    """Copies as copy.deepcopy does, which asks each of a module's thirty attributes how."""

    memo: dict[int, Any]  # copies by the identities of what they are of
    by_attributes: dict[type, bool] = field(default_factory=dict)

    def copy(self, part: Any) -> Any:
        if is_atom(part):
            return part
        if id(part) in self.memo:
            return self.memo[id(part)]
        kind: Any = type(part)
        if kind in _TABLES and all(type(key) is str for key in part):
            made = self.memo[id(part)] = kind()
            made.update((key, self.copy(held)) for key, held in part.items())
            return made
        if kind is set and not part:
            return self.memo.setdefault(id(part), set())
        if isinstance(part, nn.Module) and self._is_copied_by_attributes(part):
            made = self.memo[id(part)] = kind.__new__(kind)
            state = kind.__getstate__(part)  # without what model.compile() leaves, in torch
            made.__setstate__({name: self.copy(held) for name, held in state.items()})
            return made
        return copy.deepcopy(part, self.memo)

    def _is_copied_by_attributes(self, module: nn.Module) -> bool:
        kind = type(module)
        if kind not in self.by_attributes:
            self.by_attributes[kind] = _has_no_copies_of_its_own(kind)
        return self.by_attributes[kind] and "__deepcopy__" not in vars(module)


_TABLES = frozenset([dict, OrderedDict])
# What copy.deepcopy asks; a class may look its attributes up elsewhere, and find a __deepcopy__.
_PROTOCOL = ("__reduce_ex__", "__reduce__", "__getstate__", "__getattr__")
_HOOKS = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__")


def _has_no_copies_of_its_own(kind: type[nn.Module]) -> bool:
    as_modules = all(getattr(kind, name) is getattr(nn.Module, name) for name in _PROTOCOL)
    own = any(hasattr(kind, name) for name in _HOOKS) or kind in copyreg.dispatch_table
    slots = any(vars(base).get("__slots__") for base in kind.__mro__)
    return as_modules and not own and not slots


def _copies_of_computed_tensors(
    model: nn.Module, attributes: Callable[[nn.Module], Mapping[str, Any]]
) -> dict[int, Any]:
    """Return copies, by identity, of the tensors that copy.deepcopy refuses: those with a history.

    Hooks of weight norm and pruning keep such tensors in layers, and so do models that cache.
    """
    values = [value for module in model.modules() for value in attributes(module).values()]
    held = tensors_in([value for value in values if not is_plain(value)])
    return {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}


# --- what cannot be copied


def is_keras_model(model: object) -> bool:
    """Return whether a model is one of Keras, which on torch's backend is an nn.Module, too.

    >>> is_keras_model(nn.Linear(2, 2))
    False
    """
    keras: Any = sys.modules.get("keras")  # without it there are no models of Keras
    return keras is not None and isinstance(model, keras.Model)


def refuse_keras(model: object) -> None:
    """Raise TypeError for a Keras model, whose verbs are elsewhere."""
    if is_keras_model(model):
        raise TypeError(
            f"`model` ({type(model).__name__}) is a Keras model, whose batch norms have rules of "
            f"their own: use the verbs of bnkit.keras, such as bnkit.keras.fold(model)"
        )


def _refuse_uncopiable(place: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"{place} is TorchScript, whose layers are fixed: pass the eager model")
    if inside_compiled(module) is not None:
        raise TypeError(
            f"{place} is compiled: pass what torch.compile was given, and compile the result"
        )
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TypeError(
            f"{place} is a {type(module).__name__}: pass its .module, and wrap the result"
        )
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise ValueError(f"{place} is lazy and has no shape yet: run one mini-batch through it")
