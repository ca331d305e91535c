"""`warm`: the kernels for the CPU compiled beforehand, and kept on disk for all later processes."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bnkit.tables import text_table

DTYPES = (torch.float32, torch.bfloat16, torch.float64)  # that have kernels


@dataclass(frozen=True)
class Warmed:
    """The kernels of one dtype: the seconds they took, how many there are, and how many were new.

    Those that were not new came from the disk.
    """

    dtype: str
    seconds: float
    kernels: int
    compiled: int


@dataclass(frozen=True)
class Warmth:
    """What was compiled, and the folder in which it is kept, None where none can be written."""

    warmed: tuple[Warmed, ...]
    folder: Path | None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        folder = None if self.folder is None else str(self.folder)
        return {"warmed": [asdict(each) for each in self.warmed], "folder": folder}

    def __str__(self) -> str:
        rows = [(w.dtype, f"{w.seconds:.1f}", f"{w.compiled} of {w.kernels}") for w in self.warmed]
        table = text_table(["dtype", "seconds", "compiled now"], rows)
        return f"{table}\n\n{self._place()}"

    def _place(self) -> str:
        if self.folder is None:
            return (
                "They cannot be kept: neither the package's folder nor the user's cache can be "
                "written. Set NUMBA_CACHE_DIR to a folder that can, also where they will be used."
            )
        return f"They are kept in {self.folder}"


def warm(
    dtypes: Iterable[torch.dtype] = DTYPES,
    *,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Warmth:
    """Return how long all kernels for the CPU took to be compiled for `dtypes`, and where they lie.

    Later processes load them in milliseconds, if they run on the same kind of processor. `progress`
    wraps the kernels as they are taken. Raises TypeError for a dtype that has no kernels and
    ValueError without dtypes.

    >>> warm([torch.int8])
    Traceback (most recent call last):
    TypeError: `dtypes` holds torch.int8: there are kernels for torch.float32, torch.bfloat16, \
torch.float64
    """
    dtypes = list(dict.fromkeys(dtypes))
    _refuse_others(dtypes)
    from bnkit.kernels.cpu.compilation import KERNELS, kernel  # noqa: PLC0415  it imports numba

    found: dict[torch.dtype, list[tuple[float, Any]]] = {dtype: [] for dtype in dtypes}
    for dtype, layout, direction in progress([(d, *name) for d in dtypes for name in KERNELS]):
        begun = time.perf_counter()
        code = kernel(layout, direction, dtype)
        found[dtype].append((time.perf_counter() - begun, code))
    folders = {_folder(code) for kernels in found.values() for _, code in kernels}
    return Warmth(
        tuple(_warmed(dtype, kernels) for dtype, kernels in found.items()),
        None if None in folders else folders.pop(),
    )


def _refuse_others(dtypes: list[torch.dtype]) -> None:
    if not dtypes:
        raise ValueError("`dtypes` is empty: pass at least one")
    for dtype in dtypes:
        if dtype not in DTYPES:
            known = ", ".join(map(str, DTYPES))
            raise TypeError(f"`dtypes` holds {dtype}: there are kernels for {known}")


def _warmed(dtype: torch.dtype, kernels: list[tuple[float, Any]]) -> Warmed:
    seconds = sum(taken for taken, _ in kernels)
    compiled = sum(not code.cache_hits for _, code in kernels)
    return Warmed(str(dtype).removeprefix("torch."), seconds, len(kernels), compiled)


def _folder(code: Any) -> Path | None:
    # Of one that is not kept the path is None. All kernels are in one package, so in one folder.
    path = code._cache.cache_path  # noqa: SLF001  Numba has no public name for it
    return None if path is None else Path(path)
