"""The built-in data sets: loaded once, split, cut into mini-batches."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path

import torch
from torch import Generator, Tensor

from bnkit.experiments.mnist_files import SHA256, DataError, read_published
from bnkit.names import unknown_name

MiniBatches = Iterator[tuple[Tensor, Tensor]]  # inputs (N, C, H, W), targets (N,)


@dataclass(frozen=True, eq=False)
class Examples:
    """Images and their classes; shared between trials, so not to be changed in place."""

    inputs: Tensor  # (N, 1, H, W), float32 in [0, 1]
    targets: Tensor  # (N,), int64

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in its parts; `fingerprint` names its contents (see `fingerprint_of`)."""

    name: str
    train: Examples
    validation: Examples | None
    test: Examples
    classes: int
    fingerprint: str

    @property
    def held_out(self) -> Examples:
        """What is evaluated along the way: the validation set, or the test set without one."""
        return self.test if self.validation is None else self.validation

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input: (channels, height, width)."""
        return tuple(self.train.inputs.shape[1:])


def fingerprint_of(*parts: Examples | None) -> str:
    """Return the SHA-256 of the shapes, dtypes and bytes of these parts in order, in hexadecimal.

    >>> fingerprint_of(Examples(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])))[:8]
    '3547d4c9'
    """
    digest = hashlib.sha256()
    for part in parts:
        for array in () if part is None else (part.inputs, part.targets):
            digest.update(f"{tuple(array.shape)} {array.dtype} ".encode())
            digest.update(array.contiguous().numpy().data)
    return digest.hexdigest()


VALIDATION = 5_000  # the first training images, as the TensorFlow tutorial's loader split them

NAMES = ("digits", *SHA256)


def load(name: str, *, folder: str | os.PathLike[str] | None = None) -> Data:
    """Return a built-in data set; the same object whenever a process asks for it again.

    "digits" comes with scikit-learn: 1,437 images of 8×8 to train on, 360 to test on, none for
    validation.  "mnist" and "fashion-mnist" have 55,000, 10,000 and 5,000 of 28×28; their files
    are looked for in `folder` (or its subfolder of that name), else in the folder that the
    environment variable BNKIT_DATA names, else downloaded into the user's cache.

    Raises DataError, which is a ValueError, for an unknown name, for files that are absent or not
    the published ones, and for a download that fails.

    >>> digits = load("digits")
    >>> digits.input_shape, len(digits.train), len(digits.test), digits.held_out is digits.test
    ((1, 8, 8), 1437, 360, True)
    """
    if name not in NAMES:
        raise DataError(unknown_name("data set", name, NAMES))
    if name == "digits":
        return _digits()
    place = folder or os.environ.get("BNKIT_DATA")
    return _published(name, Path(place).expanduser().absolute() if place else None)


def batches(examples: Examples, batch_size: int, *, generator: Generator) -> MiniBatches:
    """Return endless mini-batches of exactly `batch_size` examples, in a new order each epoch.

    What is left over at the end of an epoch is dropped, so that every mini-batch weighs the same.
    Raises ValueError where there are too few examples for one mini-batch.

    >>> few = Examples(torch.zeros(7, 1, 8, 8), torch.arange(7))
    >>> inputs, targets = next(batches(few, 3, generator=torch.Generator().manual_seed(0)))
    >>> inputs.shape, targets
    (torch.Size([3, 1, 8, 8]), tensor([4, 0, 5]))
    """
    _check_batch_size(batch_size, examples)
    return _shuffled(examples, batch_size, generator)


def ordered_batches(examples: Examples, batch_size: int) -> MiniBatches:
    """Return endless mini-batches of exactly `batch_size` examples, in the order of the data.

    They are views of the data; leftovers and errors are as in `batches`.
    """
    _check_batch_size(batch_size, examples)
    starts = range(0, len(examples) - batch_size + 1, batch_size)
    places = cycle(slice(start, start + batch_size) for start in starts)
    return ((examples.inputs[place], examples.targets[place]) for place in places)


def _shuffled(examples: Examples, batch_size: int, generator: Generator) -> MiniBatches:
    whole = len(examples) // batch_size * batch_size
    while True:
        order = torch.randperm(len(examples), generator=generator)
        for chosen in order[:whole].view(-1, batch_size):
            yield examples.inputs.index_select(0, chosen), examples.targets.index_select(0, chosen)


def _check_batch_size(batch_size: int, examples: Examples) -> None:
    if not 1 <= batch_size <= len(examples):
        raise ValueError(
            f"`batch_size` is {batch_size}: choose 1 to {len(examples)}, the number of examples"
        )


@cache
def _digits() -> Data:
    from sklearn import datasets, model_selection  # noqa: PLC0415  a second, needed only here

    digits = datasets.load_digits()
    images = (digits.images[:, None] / 16).astype("float32")  # exact: 17 grey levels
    classes = digits.target.astype("int64")
    split = model_selection.train_test_split(
        images, classes, test_size=0.2, random_state=0, stratify=classes
    )
    train_inputs, test_inputs, train_targets, test_targets = map(torch.from_numpy, split)
    train, test = Examples(train_inputs, train_targets), Examples(test_inputs, test_targets)
    return Data("digits", train, None, test, 10, fingerprint_of(train, test))


@cache
def _published(name: str, folder: Path | None) -> Data:
    images, labels, test_images, test_labels = read_published(name, folder)
    every = _examples(name, images, labels)
    test = _examples(name, test_images, test_labels)
    validation = Examples(every.inputs[:VALIDATION], every.targets[:VALIDATION])
    train = Examples(every.inputs[VALIDATION:], every.targets[VALIDATION:])
    return Data(name, train, validation, test, 10, fingerprint_of(train, validation, test))


def _examples(name: str, images: Tensor, labels: Tensor) -> Examples:
    if len(images) != len(labels):
        raise DataError(f"{len(images)} images and {len(labels)} labels in {name} do not match")
    return Examples(images[:, None].float().div_(255), labels.long())
