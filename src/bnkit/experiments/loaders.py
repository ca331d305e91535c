"""`Source`: where batches come from, a named data set or a function of the user's."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bnkit.batches import number_of
from bnkit.experiments import data as data_sets
from bnkit.experiments.provenance import batch_fingerprint, fingerprint
from bnkit.experiments.settings import Settings
from bnkit.experiments.tasks import MARKS, inputs_and_targets, target_of
from bnkit.references import blaming, called, reference_to
from bnkit.source_code import source_of

OwnLoaders = Callable[[], tuple[Iterable[Any], Iterable[Any]]]


class Loaders(NamedTuple):
    """Batches to train on, to measure on along the way, and to measure on at the end."""

    train: Iterable[Any]
    held_out: Iterable[Any]
    test: Iterable[Any]


@dataclass(frozen=True)
class Source:
    """Where batches come from, and what follows from it.

    `open_loaders()` starts them again, with randomness from the global generators. `classes` is
    how many the targets name, `steps` the length of a run; `identity` is what decides the numbers.
    `marks` are the numbers in targets that may stand for what is not counted.
    """

    name: str
    open_loaders: Callable[[], Loaders]
    classes: int
    steps: int
    identity: Mapping[str, str]
    marks: frozenset[int] = frozenset()


def seed_everything(seed: int) -> None:
    """Set the global generators of torch, Python and NumPy, from which users' code draws."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the generator that users' loaders draw from


def named_source(name: str, settings: Settings, *, folder: Path | None) -> Source:
    """Return a built-in data set, cut into mini-batches as the settings say."""
    examples = data_sets.load(name, folder=folder)
    identity = {
        "examples": examples.fingerprint,
        "batches": f"{settings.batch_size}, shuffled: {settings.shuffle}",
    }
    open_loaders = partial(_open_named, name, settings, folder)
    steps = _steps(settings, len(examples.train) // settings.batch_size)
    return Source(name, open_loaders, examples.classes, steps, identity)


def own_source(loaders: OwnLoaders, settings: Settings, *, checked: bool = True) -> Source:
    """Return the user's own data, once each batch of an epoch has been read and checked.

    For a loop of the user's own they are not `checked`: they may be anything that it takes.

    Raises ValueError or TypeError for loaders that fail, are empty or cannot be iterated again, and
    for targets that are not tensors.
    """
    open_loaders = partial(open_own, loaders)
    seed_everything(0)
    train, test, _ = open_loaders()
    if not checked:
        read = {"train": map(batch_fingerprint, train), "test": map(batch_fingerprint, test)}
        with blaming("reading `data` fails"):
            examples = fingerprint({name: list(each) for name, each in read.items()})
        identity = {"loaders": source_of(loaders), "examples": examples}
        return Source(reference_to(loaders), open_loaders, 0, settings.steps, identity)
    steps = _steps(settings, number_of(train))
    train_batches, train_classes, marks = _read(train, "training", at_most=steps)
    _check_restarts(train, "training", enough=len(train_batches) == steps)
    test_batches, test_classes, others = _read(test, "test")
    _check_restarts(test, "test", enough=False)
    examples = fingerprint({"train": train_batches, "test": test_batches})
    return Source(
        name=reference_to(loaders),
        open_loaders=open_loaders,
        classes=max(train_classes, test_classes),
        steps=steps,
        identity={"loaders": source_of(loaders), "examples": examples},
        marks=frozenset(marks | others),
    )


def first_of(batches: Iterable[Any]) -> Any:
    """Return the first batch; ValueError where there is none."""
    for batch in batches:
        return batch
    raise ValueError(
        "`data` gives no batches when it is called again: make them again at each call, since "
        "iterators are used up"
    )


def _steps(settings: Settings, per_epoch: int | None) -> int:
    if settings.epochs is None:
        return settings.steps
    if per_epoch is None:
        raise ValueError(
            f"`epochs` is {settings.epochs}, and the training loader has no length: pass `steps`"
        )
    return settings.epochs * per_epoch


def _read(
    batches: Iterable[Any], name: str, *, at_most: int | None = None
) -> tuple[list[str], int, set[int]]:
    """Return the fingerprint of each batch, how many classes the targets name, and their marks."""
    found, classes, marks = [], 0, set[int]()
    for batch in _first(batches, name, at_most):
        if not isinstance(batch, Mapping):
            _check_inputs(inputs_and_targets(batch)[0], name)
        targets = target_of(batch)
        _check_targets(targets, name)
        if not targets.dtype.is_floating_point:
            marks |= {mark for mark in MARKS - marks if bool((targets == mark).any())}
            if targets.numel() == len(targets):  # a column, too
                classes = max(classes, int(targets.max()) + 1)
        found.append(batch_fingerprint(batch))
    if not found:
        raise ValueError(f"the {name} batches of `data` are empty: there is nothing to compare on")
    return found, classes, marks


def _first(batches: Iterable[Any], name: str, at_most: int | None) -> Iterator[Any]:
    with blaming(f"reading the {name} batches of `data` fails"):
        yield from islice(batches, at_most)


def _check_inputs(inputs: Any, name: str) -> None:
    if not isinstance(inputs, Tensor | tuple | dict):
        raise TypeError(
            f"the inputs of a {name} batch are a {type(inputs).__name__}: they must be a tensor, a "
            f"tuple of positional or a dict of keyword arguments of the network"
        )


def _check_targets(targets: Any, name: str) -> None:
    if not isinstance(targets, Tensor) or not targets.dim():
        kind = "of no shape" if isinstance(targets, Tensor) else f"a {type(targets).__name__}"
        raise TypeError(
            f"the targets of a {name} batch are {kind}: they must be a tensor with a target for "
            f"each example"
        )
    if not len(targets):
        raise ValueError(f"a {name} batch holds no examples: leave it out")


def _check_restarts(batches: Any, name: str, *, enough: bool) -> None:
    if isinstance(batches, Iterator) and not enough:
        raise ValueError(
            f"the {name} batches of `data` are an iterator, which is used up after one pass: "
            f"return a list or a DataLoader, which can be iterated again"
        )


def _open_named(data: str, settings: Settings, folder: Path | None) -> Loaders:
    examples = data_sets.load(data, folder=folder)
    if settings.shuffle:
        # One of its own: what a network draws while it trains must not change the order.
        generator = torch.Generator().manual_seed(torch.initial_seed())
        train = data_sets.batches(examples.train, settings.batch_size, generator=generator)
    else:
        train = data_sets.ordered_batches(examples.train, settings.batch_size)
    held_out, test = (_whole(part) for part in (examples.held_out, examples.test))
    return Loaders(train, held_out, test)


def _whole(examples: data_sets.Examples) -> list[tuple[Tensor, Tensor]]:
    inputs, targets = (torch.split(part, 1000) for part in (examples.inputs, examples.targets))
    return list(zip(inputs, targets, strict=True))


def open_own(data: Callable[[], Any], parts: str = "two iterables of batches") -> Loaders:
    """Return what `data` of the user's own returns, (train, test); `parts` says what each may be.

    Raises TypeError for what is not a pair.
    """
    found = called(data, "data")
    if not isinstance(found, tuple | list) or len(found) != 2:
        length = f" of {len(found)}" if isinstance(found, tuple | list) else ""
        raise TypeError(
            f"`data` returned a {type(found).__name__}{length}: it must return (train, test), "
            f"{parts}"
        )
    train, test = found
    return Loaders(train, test, test)
