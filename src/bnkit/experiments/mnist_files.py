"""The published files of MNIST and Fashion-MNIST: found or fetched, and checked byte for byte."""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rich.progress import Progress


class DataError(ValueError):
    """A data set that is unknown, absent, damaged or out of reach; the message says what to do."""


# Of MNIST (LeCun, Cortes and Burges) and Fashion-MNIST (Xiao, Rasul and Vollgraf 2017) alike.
FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

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


def read_published(name: str, folder: Path | None) -> list[Tensor]:
    """Return training images, training labels, test images and test labels, all uint8.

    The files come from `folder` or its subfolder `name`; without one, from the user's cache, into
    which they are downloaded first. Raises DataError where they cannot be had or are not the
    published ones.
    """
    place = _download(name) if folder is None else _local(name, folder)
    return [_array(place / file, sha) for file, sha in zip(FILES, SHA256[name], strict=True)]


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
