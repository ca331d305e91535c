"""The built-in data sets: loaded once, checked byte for byte, cut into mini-batches."""

import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from bnkit.lab.networks import unknown_name

if TYPE_CHECKING:
    from rich.progress import Progress


MiniBatches = Iterator[tuple[Tensor, Tensor]]  # inputs (N, C, H, W), targets (N,)


class DataError(ValueError):
    """A data set that is unknown, absent, damaged or out of reach; the message says what to do."""


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


# Of MNIST (LeCun, Cortes and Burges) and Fashion-MNIST (Xiao, Rasul and Vollgraf 2017) alike.
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
VALIDATION = 5_000  # the first training images, as the TensorFlow tutorial's loader split them

MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
}
SHA256 = {  # of each of FILES
    "mnist": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion-mnist": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}
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
    place = _download(name) if folder is None else _local(name, folder)
    arrays = [_array(place / file, sha) for file, sha in zip(FILES, SHA256[name], strict=True)]
    every, test = _examples(place, *arrays[:2]), _examples(place, *arrays[2:])
    validation = Examples(every.inputs[:VALIDATION], every.targets[:VALIDATION])
    train = Examples(every.inputs[VALIDATION:], every.targets[VALIDATION:])
    return Data(name, train, validation, test, 10, fingerprint_of(train, validation, test))


def _examples(place: Path, images: Tensor, labels: Tensor) -> Examples:
    if len(images) != len(labels):
        raise DataError(f"{len(images)} images and {len(labels)} labels in {place} do not match")
    return Examples(images[:, None].float().div_(255), labels.long())


def _local(name: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(
            f"the data folder {folder} does not exist: give another as --data-dir or BNKIT_DATA, "
            f"or neither to download {name}"
        )
    for place in (folder / name, folder):
        if all((place / file).is_file() for file in FILES):
            return place
    raise DataError(
        f"neither {folder / name} nor {folder} holds all files of {name}: put "
        f"{', '.join(FILES)} there, or give no data folder to download them"
    )


def _array(path: Path, sha256: str) -> Tensor:
    """Return the array in a compressed idx file, once it is known to be the published one."""
    packed = path.read_bytes()
    replace = "replace it by the original, or give no data folder to download it"
    try:
        array = _parse_idx(gzip.decompress(packed), dimensions=3 if "images" in path.name else 1)
    except (EOFError, OSError, zlib.error, DataError) as error:
        raise DataError(f"{path} is cut short or damaged ({error}): {replace}") from error
    found = hashlib.sha256(packed).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path} is not the published file: its SHA-256 is {found} and should be {sha256}; "
            f"{replace}"
        )
    return array


def _parse_idx(raw: bytes, *, dimensions: int) -> Tensor:
    """Return the array of an idx file: a magic number, `dimensions` sizes, then the bytes."""
    magic, header = 0x800 + dimensions, 4 + 4 * dimensions
    if len(raw) < header or struct.unpack_from(">I", raw)[0] != magic:
        raise DataError(f"no idx header with the magic number {magic}")
    shape = struct.unpack_from(f">{dimensions}I", raw, 4)
    if len(raw) != header + math.prod(shape):
        raise DataError(f"{len(raw) - header} bytes of data, {math.prod(shape)} in the header")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=header).reshape(shape)


def _download(name: str) -> Path:
    """Return the folder in the user's cache that holds the files, fetching what is not there."""
    import pooch  # noqa: PLC0415  a quarter of a second, needed only here
    from rich.console import Console  # noqa: PLC0415  as above
    from rich.progress import Progress  # noqa: PLC0415  as above

    folder = Path(pooch.os_cache("bnkit")) / name
    retrieve = partial(pooch.retrieve, path=folder)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for file, sha256 in zip(FILES, SHA256[name], strict=True):
            bar = pooch.HTTPDownloader(progressbar=_Bar(progress, f"{name}: {file}"))
            fetch = partial(retrieve, known_hash=sha256, fname=file, downloader=bar)
            _try_each(fetch, [mirror + file for mirror in MIRRORS[name]])
    return folder


def _try_each(fetch: Callable[[str], object], urls: Iterable[str]) -> None:
    failures = []
    for url in urls:
        try:
            fetch(url)
        except (OSError, ValueError) as error:  # no network, no such file, full disk; wrong hash
            failures.append(f"{url}: {error}")
        else:
            return
    raise DataError(
        f"the download failed: give a folder that holds {', '.join(FILES)} as --data-dir or "
        f"BNKIT_DATA. What was tried:\n" + "\n".join(failures)
    )


class _Bar:
    """The progress bar that pooch expects, drawn by rich."""

    total = 0.0  # bytes; pooch sets it

    def __init__(self, progress: "Progress", title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, visible=False)

    def update(self, size: float) -> None:
        self._progress.update(self._task, total=self.total, advance=size, visible=True)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop_task(self._task)
