"""`format_of`: the formats of checkpoints, by the suffix of the file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnkit.checkpoints import safetensors_files, torch_files


@dataclass(frozen=True)
class Format:
    """How checkpoints of one kind are written and read."""

    write: Callable[[Path, Mapping[str, Any], str], None]
    read: Callable[[Path], tuple[Mapping[str, Any], str | None]]


def format_of(path: Path) -> Format:
    """Return the format that the suffix of `path` says; ValueError for any other suffix.

    >>> format_of(Path("weights.bin"))
    Traceback (most recent call last):
    ValueError: the suffix of weights.bin is '.bin': a checkpoint is a file of safetensors \
(.safetensors) or of torch (.pt, .pth)
    """
    if path.suffix not in _FORMATS:
        raise ValueError(
            f"the suffix of {path} is {path.suffix!r}: a checkpoint is a file of safetensors "
            f"(.safetensors) or of torch (.pt, .pth)"
        )
    return _FORMATS[path.suffix]


_TORCH = Format(torch_files.write, torch_files.read)
_FORMATS = {
    ".safetensors": Format(safetensors_files.write, safetensors_files.read),
    ".pt": _TORCH,
    ".pth": _TORCH,
}
