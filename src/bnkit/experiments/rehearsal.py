"""`rehearse`: try every part of a comparison once, before anything runs for long or is written."""

from typing import Any

from torch import Tensor, nn

from bnkit.dataflow import ExampleError, as_call, observe
from bnkit.experiments.fingerprints import of_arrays, of_batch
from bnkit.experiments.loaders import first_of
from bnkit.experiments.records import SIDES
from bnkit.experiments.settings import Settings
from bnkit.experiments.subject import Subject
from bnkit.experiments.training import Training, inputs_and_targets, train
from bnkit.observation import on_the_side
from bnkit.references import blaming


def rehearse(subject: Subject, settings: Settings) -> None:
    """Build both sides, run a training and a test batch through them, and train them for one step.

    Raises ValueError or TypeError, in one sentence, for a network that cannot be normalised or
    trained, a batch that it cannot take, outputs that are no scores of the classes, networks or
    batches that differ when they are drawn again, and code that cannot be sent to a process.
    """
    rate, *_ = settings.learning_rates
    step = Training(rate, settings.optimizer, settings.loss, steps=1, evaluate_every=1)
    for activation in subject.activations:
        for side in SIDES:
            model = subject.network(side, activation, 0)
            loaders = subject.loaders(0)
            first, test = first_of(loaders.train), first_of(loaders.test)
            _check_batch(model, first, "training", subject.source.classes)
            _check_batch(model, test, "test", subject.source.classes)
            with blaming(f"a training step of the {side} network fails"):
                train(model, [first], [test], step)
    _check_repeatable(subject)
    _check_portable(subject)


def _check_batch(model: nn.Module, batch: Any, name: str, classes: int) -> None:
    inputs, targets = inputs_and_targets(batch)
    outputs = _outputs(model, inputs, name)
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the network returns {shape} for a {name} batch: it must return scores of shape "
            f"(mini-batch, classes)"
        )
    if len(targets) != len(outputs):
        raise ValueError(
            f"a {name} batch has {len(targets)} targets and the network returns {len(outputs)} "
            f"rows: there must be one target for each"
        )
    if classes > outputs.shape[1]:
        raise ValueError(
            f"a target of `data` is {classes - 1} and the network has {outputs.shape[1]} outputs: "
            f"targets must lie from 0 to {outputs.shape[1] - 1}"
        )


def _outputs(model: nn.Module, inputs: Any, name: str) -> Any:
    args, kwargs = as_call(inputs)
    try:
        observe(model, inputs)  # its errors name the layer
        with on_the_side(model):
            return model(*args, **kwargs)
    except ExampleError as error:
        raise ExampleError(f"a {name} batch does not fit the network: {error}") from error


def _check_repeatable(subject: Subject) -> None:
    for activation in subject.activations:
        first, second = (subject.network("plain", activation, 0) for _ in range(2))
        if first is second or of_arrays(first) != of_arrays(second):
            raise ValueError(
                "`build` gives another network when it is called again under the same seed, so "
                "the sides could not begin alike: build it anew at each call, and draw its "
                "weights from the global random generators of torch, Python or NumPy"
            )
    one, other = ([of_batch(first_of(part)) for part in subject.loaders(0)] for _ in range(2))
    if one != other:
        raise ValueError(
            "`data` gives other batches when it is called again under the same seed, so the sides "
            "could not see the same: draw from the global random generators of torch, Python or "
            "NumPy, or seed your own in it"
        )


def _check_portable(subject: Subject) -> None:
    from joblib.externals.loky.backend.reduction import dumps  # noqa: PLC0415  as slow as joblib

    with blaming("`build` and `data` run in other processes, and cannot be sent there"):
        dumps(subject)
