"""`trace`: run a copy of a model once on an example, and return its dataflow."""

import copy
import sys
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from bnkit.dataflow.calls import Dataflow
from bnkit.dataflow.closures import copied_closures, is_plain
from bnkit.dataflow.recording import Recorder
from bnkit.dataflow.sharding import (
    copy_without_shards,
    is_sharded,
    own_attributes,
    refuse_sharded,
)
from bnkit.dataflow.tensors import replace_tensors, tensors_in
from bnkit.internals import compiler_is_loaded, inside_compiled
from bnkit.observation import (
    Before,
    NotEnoughMemoryError,
    evaluating,
    memory_explained,
    on_the_side,
    preserved_random_state,
    set_mode,
    watching,
)


class ExampleError(ValueError):
    """The model could not be run on the example; the message names the layer that failed."""


def as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return `example` as the positional and keyword arguments of the model's call.

    A tensor is the one argument, a tuple the positional ones, a dict the keyword ones; TypeError
    for anything else.

    >>> as_call({"ids": 3})
    ((), {'ids': 3})
    """
    match example:
        case Tensor():
            return (example,), {}
        case tuple():
            return example, {}
        case dict():
            return (), example
    raise TypeError(
        f"`example` is a {type(example).__name__}: pass a tensor, a tuple of positional arguments "
        f"or a dict of keyword arguments"
    )


def trace(model: nn.Module, example: Any) -> Dataflow:
    """Return the dataflow of one run of `model` on `example`.

    The run is made on a deep copy in eval mode, without gradients, on a copy of the example's
    tensors, and the state of the random generators is given back: `model` and `example` stay as
    they were. Raises ExampleError, naming the layer, if the model fails on the example.

    >>> flow = trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(2, 4))
    >>> [str(call) for call in flow.calls]
    ["'0' (Linear)", "'1' (ReLU)"]
    """
    return observe(duplicate(model), example)


def observe(model: nn.Module, example: Any) -> Dataflow:
    """Return the dataflow of `model` itself, run as `trace` runs its copy."""
    with evaluating(model):
        return observe_in_its_mode(model, example)


def observe_in_training(
    model: nn.Module, example: Any, *, before: Before | None = None
) -> Dataflow | None:
    """Return the dataflow of a copy of `model` in training mode; None where it fails in it.

    That is so for an example with one value per channel. It shows what runs in training alone, such
    as the auxiliary heads of image models. `before` sees each call, as that of `watching` does.

    >>> observe_in_training(nn.Sequential(nn.BatchNorm1d(2)), torch.zeros(1, 2)) is None
    True
    """
    subject = set_mode(duplicate(model), training=True)
    try:
        with watching(subject, before=before):
            return observe_in_its_mode(subject, example)
    except ExampleError:
        return None


def observe_in_its_mode(model: nn.Module, example: Any) -> Dataflow:
    """Return the dataflow of `model` itself in the mode that it is in, which may change it."""
    with on_the_side(model, mode=nullcontext), _eagerly():
        args, kwargs = replace_tensors(as_call(example), _copied)
        recorder = Recorder(model)
        recorder.introduce((args, kwargs))
        with watching(model, before=recorder.enter, after=recorder.leave):
            try:
                with recorder:
                    result = model(*args, **kwargs)
            except Exception as error:
                raise ExampleError(recorder.explain(error, (args, kwargs))) from error
    return recorder.dataflow(result)


def _eagerly() -> AbstractContextManager[object]:
    """Keep compiled parts of a model from running compiled: no call in them would be seen."""
    return torch.compiler.set_stance("force_eager") if compiler_is_loaded() else nullcontext()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


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

    A model that is sharded over ranks has none, or with `gathers` a plain one with all values, for
    which all ranks must call this. Raises NotEnoughMemoryError where there is no room for one.

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
    memo = _copies_of_computed_tensors(model) | _empty_containers(model)
    fill = copied_closures(model, memo)
    try:
        # A copy made in inference mode could not be trained; one made by a constructor draws.
        with torch.inference_mode(mode=False), preserved_random_state(), memory_explained():
            if is_sharded(model):
                copy_without_shards(model, memo)
            made = copy.deepcopy(model, memo)
            fill()
            return made
    except NotEnoughMemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"`model` ({type(model).__name__}) cannot be copied: {error}. bnkit changes a copy and "
            f"leaves yours alone, so copy.deepcopy(model) must work"
        ) from error


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


def _copies_of_computed_tensors(model: nn.Module) -> dict[int, Any]:
    """Return copies, by identity, of the tensors that copy.deepcopy refuses: those with a history.

    Hooks of weight norm and pruning keep such tensors in layers, and so do models that cache.
    """
    attributes = own_attributes if is_sharded(model) else vars
    values = [value for module in model.modules() for value in attributes(module).values()]
    held = tensors_in([value for value in values if not is_plain(value)])
    return {id(tensor): tensor.detach().clone() for tensor in held if not tensor.is_leaf}


def _empty_containers(model: nn.Module) -> dict[int, Any]:
    """Return copies, by identity, of the empty tables that modules hold, nine each.

    copy.deepcopy takes OrderedDicts apart and puts them together again: half of its time.
    """
    held = (value for module in model.modules() for value in vars(module).values())
    return {id(value): type(value)() for value in held if type(value) in _TABLES and not value}


_TABLES = (dict, OrderedDict, set)


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
