"""The runs of a model on its example: its dataflow in both modes, and one step of training."""

import inspect
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.batches import Call
from bnkit.dataflow import Dataflow, ExampleError, duplicate, observe
from bnkit.dataflow.tensors import replace_tensors, tensors_in
from bnkit.dataflow.tracing import observe_in_its_mode
from bnkit.diagnosis.evidence import Step
from bnkit.diagnosis.passes import training_copy
from bnkit.observation import seeing_inputs

Shape = tuple[int, ...]


@dataclass
class Flows:
    """The dataflow in eval and in training mode, None for the reason in its failure.

    `shapes` are those of the inputs of the layers, by path and call.
    """

    evaluating: Dataflow | None = None
    training: Dataflow | None = None
    failure: str = ""
    training_failure: str = ""
    shapes: dict[str, list[Shape]] = field(default_factory=lambda: defaultdict(list))


def flows_of(model: nn.Module, example: Any, paths: list[str]) -> Flows:
    """Return the dataflows of copies of `model` on `example`, looking at these layers.

    >>> flows_of(nn.Sequential(nn.BatchNorm1d(2)), torch.ones(1, 2), ["0"]).shapes["0"]
    [(1, 2)]
    """
    flows, subject = Flows(), duplicate(model)
    layers = {path: subject.get_submodule(path) for path in paths}

    def see(path: str, _layer: nn.Module, values: Tensor) -> None:
        flows.shapes[path].append(tuple(values.shape))

    try:
        with seeing_inputs(subject, layers, see):
            flows.evaluating = observe(subject, example)
    except ExampleError as error:
        flows.failure = str(error)
    try:
        flows.training = observe_in_its_mode(training_copy(model), example)
    except ExampleError as error:  # such as one value per channel
        flows.training_failure = str(error)
    return flows


def step_of(model: nn.Module, call: Call) -> Step | None:
    """Return which buffers a forward and its backward change; None where there is no backward.

    >>> step_of(nn.BatchNorm1d(1), ((torch.tensor([[1.0], [2.0]]),), {})).written_in_backward
    frozenset()
    """
    subject = training_copy(model)
    args, kwargs = replace_tensors(call, _with_gradient)
    try:
        with torch.enable_grad():
            before = _buffers(subject)
            outputs = tensors_in(subject(*args, **kwargs))
            between = _buffers(subject)
            _loss(outputs).backward()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001  the model does not train on this example, for any reason
        return None
    gradients = {
        name: parameter.grad.norm().item()
        for name, parameter in subject.named_parameters()
        if parameter.grad is not None
    }
    return Step(_changed(before, between), _changed(between, _buffers(subject)), gradients)


def example_of(model: nn.Module, call: Call) -> Any:
    """Return the call in a form of an example: a tuple, or a dict of keyword arguments.

    >>> example_of(nn.ReLU(), ((1,), {}))
    (1,)
    """
    args, kwargs = call
    names = list(inspect.signature(model.forward).parameters) if args and kwargs else []
    return dict(zip(names, args, strict=False)) | kwargs if kwargs else args


def _loss(outputs: list[Tensor]) -> Tensor:
    """Return a random linear function: the sum of what is normalised would have no gradient."""
    parts = [t for t in outputs if t.requires_grad and t.is_floating_point()]
    return sum((torch.randn_like(t).mul(t).sum() for t in parts), torch.zeros(()))


def _with_gradient(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    # The copy of a leaf, so that the model may write into it.
    return copy.requires_grad_().clone() if copy.is_floating_point() else copy


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> frozenset[str]:
    return frozenset(
        name
        for name, value in after.items()
        if name in before and not _is_same(value, before[name])
    )


def _is_same(values: Tensor, others: Tensor) -> bool:
    """Return whether all values are the same, NaN as NaN."""
    if values.shape != others.shape:
        return False
    return bool(((values == others) | (values.isnan() & others.isnan())).all())
