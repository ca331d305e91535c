"""`trace`: run a copy of a model once on an example, and return its dataflow."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.dataflow.calls import Dataflow
from bnkit.dataflow.copying import duplicate
from bnkit.dataflow.recording import Recorder
from bnkit.dataflow.tensors import replace_tensors
from bnkit.internals import compiler_is_loaded
from bnkit.observation import After, Before, evaluating, on_the_side, set_mode, watching


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


def observe(
    model: nn.Module, example: Any, *, before: Before | None = None, after: After | None = None
) -> Dataflow:
    """Return the dataflow of `model` itself, run as `trace` runs its copy.

    `before` and `after` see each call, as those of `watching` do.
    """
    with evaluating(model):
        return observe_in_its_mode(model, example, before=before, after=after)


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
        return observe_in_its_mode(subject, example, before=before)
    except ExampleError:
        return None


def observe_in_its_mode(
    model: nn.Module, example: Any, *, before: Before | None = None, after: After | None = None
) -> Dataflow:
    """Return the dataflow of `model` itself in the mode that it is in, which may change it."""
    with on_the_side(model, mode=nullcontext), _eagerly():
        args, kwargs = replace_tensors(as_call(example), _copied)
        recorder = Recorder(model)
        recorder.introduce((args, kwargs))
        # One hook of a module serves both: setting and calling them is a large part of the cost.
        enter, leave = _in_turn(before, recorder.enter), _in_turn(after, recorder.leave)
        with watching(model, before=enter, after=leave):
            try:
                with recorder:
                    result = model(*args, **kwargs)
            except Exception as error:
                raise ExampleError(recorder.explain(error, (args, kwargs))) from error
    return recorder.dataflow(result)


def _in_turn(first: Callable[..., object] | None, then: Callable[..., object]) -> Any:
    return then if first is None else lambda *call: (first(*call), then(*call))


def _eagerly() -> AbstractContextManager[object]:
    """Keep compiled parts of a model from running compiled: no call in them would be seen."""
    return torch.compiler.set_stance("force_eager") if compiler_is_loaded() else nullcontext()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
