"""`trace`: run a copy of a model once on an example, and return its dataflow."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from bnkit.dataflow.calls import Dataflow
from bnkit.dataflow.recording import Recorder
from bnkit.observation import evaluating, preserved_random_state, watching


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

    The run is made on a deep copy in eval mode, without gradients, and the state of the random
    generators is given back: `model` stays as it was. Raises ExampleError, naming the layer, if
    the model fails on the example.

    >>> flow = trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.zeros(2, 4))
    >>> [str(call) for call in flow.calls]
    ["'0' (Linear)", "'1' (ReLU)"]
    """
    return observe(duplicate(model), example)


def observe(model: nn.Module, example: Any) -> Dataflow:
    """Return the dataflow of `model` itself, run as `trace` runs its copy."""
    args, kwargs = as_call(example)
    recorder = Recorder(model)
    recorder.introduce((args, kwargs))
    with (
        torch.no_grad(),
        preserved_random_state(),
        evaluating(model),
        watching(model, before=recorder.enter, after=recorder.leave),
    ):
        try:
            with recorder:
                result = model(*args, **kwargs)
        except Exception as error:
            raise ExampleError(recorder.explain(error, (args, kwargs))) from error
    return recorder.dataflow(result)


def duplicate(model: nn.Module) -> nn.Module:
    """Return a deep copy; TypeError or ValueError, with what to do, where none is possible."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` is a {type(model).__name__}: pass a torch.nn.Module")
    for path, module in model.named_modules():
        _refuse_uncopiable(path or "the model itself", module)
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"`model` ({type(model).__name__}) cannot be copied: {error}. bnkit changes a copy and "
            f"leaves yours alone, so copy.deepcopy(model) must work"
        ) from error


def _refuse_uncopiable(path: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"{path} is TorchScript, whose layers are fixed: pass the eager model")
    if isinstance(module, torch._dynamo.OptimizedModule):  # noqa: SLF001  it has no public name
        raise TypeError(f"{path} is compiled: pass the model given to torch.compile, compile after")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise TypeError(f"{path} is a {type(module).__name__}: pass its .module and wrap after")
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        raise ValueError(f"{path} is lazy and has no shape yet: run one mini-batch through `model`")
