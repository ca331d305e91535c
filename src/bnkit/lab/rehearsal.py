"""`rehearse`: try every part of a comparison once, before anything runs for long or is written."""

from typing import Any

import torch
from torch import Tensor, nn

from bnkit.dataflow import ExampleError, as_call
from bnkit.lab.subject import Subject
from bnkit.lab.training import inputs_and_targets
from bnkit.observation import evaluating


def rehearse(subject: Subject) -> None:
    """Build both sides and run one training and one test batch through them.

    Raises ValueError or TypeError, in one sentence, for a network that cannot be normalised, a
    batch that it cannot take, outputs that are no scores of classes, targets of the wrong kind
    or out of range, and empty loaders.
    """
    for activation in subject.activations:
        for side in ("plain", "batch norm"):
            model = subject.network(side, activation, 0)
            loaders = subject.loaders(0)
            for name, batches in (("training", loaders.train), ("test", loaders.test)):
                _check_batch(model, _first(name, batches), name)


def _first(name: str, batches: Any) -> Any:
    for batch in batches:
        return batch
    raise ValueError(f"the {name} batches of `data` are empty: there is nothing to compare on")


def _check_batch(model: nn.Module, batch: Any, name: str) -> None:
    inputs, targets = inputs_and_targets(batch)
    outputs = _outputs(model, inputs)
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the network returns {shape} for a {name} batch: it must return scores of shape "
            f"(mini-batch, classes)"
        )
    _check_targets(targets, outputs, name)


def _outputs(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = as_call(inputs)
    try:
        with torch.no_grad(), evaluating(model):
            return model(*args, **kwargs)
    except Exception as error:
        raise ExampleError(
            f"the network fails on the data: {type(error).__name__}: {error}"
        ) from error


def _check_targets(targets: Any, outputs: Tensor, name: str) -> None:
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.dim() != 1:
        kind = (
            f"{targets.dtype} of shape {tuple(targets.shape)}"
            if isinstance(targets, Tensor)
            else type(targets).__name__
        )
        raise TypeError(
            f"the targets of a {name} batch are {kind}: they must be class numbers, a tensor of "
            f"torch.int64 of shape (mini-batch,)"
        )
    if len(targets) != len(outputs):
        raise ValueError(
            f"a {name} batch has {len(targets)} targets and the network returns {len(outputs)} "
            f"rows: there must be one target for each"
        )
    classes = outputs.shape[1]
    wrong = targets[(targets < 0) | (targets >= classes)]
    if len(wrong):
        raise ValueError(
            f"a target of a {name} batch is {wrong[0].item()} and the network has {classes} "
            f"outputs: targets must lie from 0 to {classes - 1}"
        )
