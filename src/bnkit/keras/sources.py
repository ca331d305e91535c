"""`KerasSource`: where the mini-batches of a comparison of Keras models come from."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np

from bnkit.batches import number_of
from bnkit.experiments import data as data_sets
from bnkit.experiments.loaders import Loaders, open_own
from bnkit.experiments.provenance import batch_fingerprint, fingerprint
from bnkit.keras.batches import pairs_in
from bnkit.keras.settings import KerasSettings
from bnkit.references import blaming, reference_to
from bnkit.source_code import source_of

PARTS = "each arrays (x, y) as `fit` takes them, or an iterable of such mini-batches"


@dataclass(frozen=True)
class KerasSource:
    """Where mini-batches come from: `open_loaders()` begins them anew, from the global generators.

    `steps` is the length of a run; `identity` is what of it decides the numbers.
    """

    name: str
    open_loaders: Callable[[], Loaders]
    steps: int
    identity: Mapping[str, str]


def own_source(data: Callable[[], Any], settings: KerasSettings, *, checked: bool) -> KerasSource:
    """Return the user's own data, once what a run reads of them has been read.

    For a loop of the user's own they are not `checked`: they may be anything that it takes.

    Raises ValueError or TypeError for data that fail, are empty, or are used up before a run ends.
    """
    open_loaders = partial(open_own, data, PARTS)
    keras.utils.set_random_seed(0)
    train, test, _ = open_loaders()
    if checked and not isinstance(train, tuple):
        settings.refuse_given(("batch_size", "shuffle"), "the training data are mini-batches")
    steps = _steps(settings, train)
    if checked:
        with blaming("reading `data` fails"):
            read = [_fingerprints(train, settings, steps), _fingerprints(test, settings, None)]
        for part, found, enough in ((train, read[0], steps), (test, read[1], math.inf)):
            name = "training" if part is train else "test"
            if not found:
                raise ValueError(f"the {name} data are empty: there is nothing to compare on")
            if isinstance(part, Iterator) and len(found) < enough:
                raise ValueError(
                    f"the {name} batches of `data` are an iterator, which is used up after one "
                    f"pass: return arrays, a list, a PyDataset or another that can be iterated "
                    f"again"
                )
    else:
        read = []
    identity = {"loaders": source_of(data), "examples": fingerprint({"examples": read})}
    return KerasSource(reference_to(data), open_loaders, steps, identity)


def named_source(
    name: str, settings: KerasSettings, shape: tuple[int, ...], *, folder: Path | None
) -> KerasSource:
    """Return a built-in data set as arrays, each input in this shape, targets as class numbers.

    Raises ValueError for a shape that does not fit the images.
    """
    examples = data_sets.load(name, folder=folder)
    if math.prod(shape) != math.prod(examples.input_shape):
        raise ValueError(
            f"the model takes inputs of shape {shape}, and the images of {name} have "
            f"{examples.input_shape[1:]}: let it take {(*examples.input_shape[1:], 1)}"
        )
    open_loaders = partial(_open_named, name, folder, shape)
    steps = _steps(settings, open_loaders().train)
    return KerasSource(name, open_loaders, steps, {"examples": examples.fingerprint})


def seeded_order(seed: int, *, shuffle: bool) -> np.random.Generator | None:
    """Return what the order of arrays is drawn from, None for that of the data.

    It is one of its own: what a model draws while it trains must not change the order.
    """
    return np.random.default_rng(seed) if shuffle else None


def _fingerprints(part: Any, settings: KerasSettings, at_most: int | None) -> list[str]:
    found = islice(pairs_in(part, settings.batch_size), at_most)
    return [batch_fingerprint(list(pair)) for pair in found]


def _steps(settings: KerasSettings, train: Any) -> int:
    if settings.epochs is None:
        return settings.steps
    if isinstance(train, tuple):
        per_epoch: int | None = sum(1 for _ in pairs_in(train, settings.batch_size))
    elif isinstance(train, keras.utils.PyDataset):
        per_epoch = train.num_batches
    else:
        per_epoch = number_of(train)
    if per_epoch is None:
        raise ValueError(
            f"`epochs` is {settings.epochs}, and the training data have no length: pass `steps`"
        )
    return settings.epochs * per_epoch


def _open_named(name: str, folder: Path | None, shape: tuple[int, ...]) -> Loaders:
    examples = data_sets.load(name, folder=folder)
    train, held_out, test = (
        (part.inputs.numpy().reshape(-1, *shape), part.targets.numpy())  # one channel: no transpose
        for part in (examples.train, examples.held_out, examples.test)
    )
    return Loaders(train, held_out, test)
