"""`rehearse`: try every part of a comparison once, before anything runs for long or is written."""

from typing import Any

import torch
from torch import Tensor, nn

from bnkit.dataflow import ExampleError, as_call, observe
from bnkit.lab.records import SIDES, Side
from bnkit.lab.settings import Settings
from bnkit.lab.subject import Subject
from bnkit.lab.training import Training, inputs_and_targets, train
from bnkit.observation import evaluating


def rehearse(subject: Subject, settings: Settings) -> None:
    """Build both sides, run one training and one test batch through them, and train one step.

    Raises ValueError or TypeError, in one sentence, for a network that cannot be normalised, a
    batch that it cannot take (naming the layer), outputs that are no scores of classes, targets
    of the wrong kind or out of range, empty loaders, and a training step that fails.
    """
    for activation in subject.activations:
        for side in SIDES:
            _rehearse_side(subject, settings, side, activation)


def _rehearse_side(subject: Subject, settings: Settings, side: Side, activation: str) -> None:
    model = subject.network(side, activation, 0)
    loaders = subject.loaders(0)
    batches = {"training": _first("training", loaders.train), "test": _first("test", loaders.test)}
    for name, batch in batches.items():
        _check_batch(model, batch, name)
    step = Training(
        settings.learning_rates[0], settings.optimizer, settings.loss, steps=1, evaluate_every=1
    )
    try:
        train(model, [batches["training"]], [batches["test"]], step)
    except Exception as error:  # the user's own network may raise anything
        kind = type(error).__name__
        raise ValueError(f"a training step of the {side} network fails: {kind}: {error}") from error


def _first(name: str, batches: Any) -> Any:
    for batch in batches:
        return batch
    raise ValueError(f"the {name} batches of `data` are empty: there is nothing to compare on")


def _check_batch(model: nn.Module, batch: Any, name: str) -> None:
    inputs, targets = inputs_and_targets(batch)
    outputs = _outputs(model, inputs, name)
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the network returns {shape} for a {name} batch: it must return scores of shape "
            f"(mini-batch, classes)"
        )
    _check_targets(targets, outputs, name)


def _outputs(model: nn.Module, inputs: Any, name: str) -> Any:
    try:
        observe(model, inputs)
    except ExampleError as error:  # it names the layer
        raise ExampleError(f"a {name} batch does not fit the network: {error}") from error
    args, kwargs = as_call(inputs)
    with torch.no_grad(), evaluating(model):
        return model(*args, **kwargs)


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
