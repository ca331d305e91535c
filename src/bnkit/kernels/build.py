"""The compiled core: built from `csrc` for the installed torch, kept on disk, loaded once.

It lies in the user's cache ($XDG_CACHE_HOME or ~/.cache, in bnkit/) under a name that says for what
it was built (sources, torch, machine) and what it holds (a checksum). So a core that was built for
another torch is never loaded, a damaged one neither, and several may lie side by side.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bnkit.platforms import memory_share

SWITCH = "BNKIT_BUILD"  # "0" in the environment: never build, use what is there
_SOURCES = Path(__file__).with_name("csrc")
# By it the core shares the threads of torch; torch 2.9 does not have it.
_NEEDED = "torch/csrc/stable/c/shim.h"
# Flags of the vector kernels, one object for each kind of CPU; the best is picked at run time.
_KINDS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ),
}
# errno and traps are not looked at; without exceptions and type information nothing that is
# compiled for a newer CPU can be linked into what runs on all.
_VECTORS = (
    *("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions"),
    *("-fno-rtti", "-fno-asynchronous-unwind-tables"),
)
_OPERATORS = ("-std=c++20", "-O2")
_SHARED = ("-fPIC", "-fvisibility=hidden", "-w")


class BuildError(RuntimeError):
    """The core cannot be built; the message says why, and what to do."""


@dataclass(frozen=True)
class Core:
    """The core, or why there is none: where it lies, and whether it was built just now."""

    path: Path | None
    reason: str = ""
    built: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "path": None if self.path is None else str(self.path),
            "reason": self.reason,
            "built": self.built,
        }

    def __str__(self) -> str:
        if self.path is None:
            return f"There is no compiled core: {self.reason}"
        return f"The core {'was built and' if self.built else 'is built, and'} lies in {self.path}"


@cache
def load() -> Core:
    """Load the core into this process, built first where it is not, and return what came of it.

    It is asked for once: later calls return the same. Nothing is built where `BNKIT_BUILD=0` says
    so. Building takes half a minute, which one line on the standard error says beforehand.
    """
    found = find()
    if found is None and os.environ.get(SWITCH) == "0":
        return Core(
            None, f"the core is not built, and {SWITCH}=0 forbids it here: run `bnkit warmup`"
        )
    try:
        if found is None:
            compiler()
            print(  # noqa: T201  a program that waits half a minute says why
                f"bnkit compiles its core for torch {torch.__version__}, once, in about half a "
                f"minute ({SWITCH}=0 forbids it)",
                file=sys.stderr,
            )
        core = Core(found) if found else build()
        torch.ops.load_library(str(core.path))  # type: ignore[no-untyped-call]
        torch.ops.bnkit.limit_idle_bytes(memory_share() // 4)
    except BuildError as error:
        return Core(None, str(error))
    except OSError as error:
        return Core(None, f"the core cannot be loaded: {error}")
    return core


def find() -> Path | None:
    """Return the core that was built from these sources for this torch, None without one."""
    for path in sorted(folder().glob(f"{name()}-*.so")):
        with path.open("rb") as file:
            if path.stem.endswith(hashlib.file_digest(file, "sha256").hexdigest()[:16]):
                return path
    return None


def build(*, progress: Callable[[list[Any]], Iterable[Any]] = iter) -> Core:
    """Return the core, built where it is not; only one process of several builds.

    `progress` wraps the list of steps as they are taken. Raises BuildError without a C++ compiler,
    with what the compiler said if it fails, and where the folder cannot be written.
    """
    command = compiler()
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with _alone(folder() / f"{name()}.lock"):
            found = find()  # another process may have built it while this one waited
            if found:
                return Core(found)
            with tempfile.TemporaryDirectory(dir=folder()) as aside:
                library = _compile(command, Path(aside), progress)
                with library.open("rb") as file:
                    checksum = hashlib.file_digest(file, "sha256").hexdigest()[:16]
                path = folder() / f"{name()}-{checksum}.so"
                library.replace(path)
    except OSError as error:
        raise BuildError(
            f"{folder()} cannot be written ({error.strerror}): set XDG_CACHE_HOME to a folder that "
            f"can, also where the core will be used"
        ) from error
    return Core(path, built=True)


def folder() -> Path:
    """Return the folder in which cores are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "bnkit"


@cache
def name() -> str:
    """Return what a core is called that is built from these sources for this torch and machine.

    The compiler does not enter: a core goes on serving where there is none, as in a container, and
    no process has to ask for its version.
    """
    key = hashlib.sha256()
    for path in sorted(_SOURCES.iterdir()):
        key.update(path.read_bytes())
    built_for = torch.__version__, torch.version.git_version, torch.compiled_with_cxx11_abi()
    key.update(repr((*built_for, _flags(), platform.machine(), sys.platform)).encode())
    return f"core-{key.hexdigest()[:16]}"


def compiler() -> list[str]:
    """Return the command of the C++ compiler: $CXX, c++, g++ or clang++.

    Raises BuildError, with what to do, where there is none, on Windows, and for a torch that lacks
    what the core is built with.
    """
    if sys.platform == "win32":
        raise BuildError("it is built on Linux and macOS only, and torch's kernels serve here")
    if not (Path(torch.__file__).parent / "include" / _NEEDED).exists():
        raise BuildError(
            f"torch {torch.__version__} has no {_NEEDED}, with which the core is built, and "
            f"torch's kernels serve: install a newer torch"
        )
    for command in (shlex.split(os.environ.get("CXX", "")), ["c++"], ["g++"], ["clang++"]):
        if command and shutil.which(command[0]):
            return command
    raise BuildError(
        "no C++ compiler was found: install one (as in `apt install g++`) or set CXX to it, then "
        "run `bnkit warmup`"
    )


def _compile(
    command: list[str], aside: Path, progress: Callable[[list[Any]], Iterable[Any]]
) -> Path:
    """Compile all objects, as many at a time as there are CPUs, and link them."""
    library = aside / "core.so"
    commands = {
        kind: [*command, *_SHARED, *flags, "-c", str(_SOURCES / source), "-o", f"{aside / kind}.o"]
        for kind, (source, flags) in _flags().items()
    }
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        done = [threads.submit(_run, each, aside) for each in commands.values()]
        for each in progress(done):
            each.result()
    objects = [f"{aside / kind}.o" for kind in commands]
    libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10"]
    _run([*command, "-shared", *objects, "-o", str(library), *libraries], aside)
    return library


def _flags() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the source and the flags of each object; the longest to compile first."""
    include = Path(torch.__file__).parent / "include"
    includes = (f"-I{include}", f"-I{include / 'torch/csrc/api/include'}")
    kinds = _KINDS if platform.machine() in {"x86_64", "AMD64"} else {"baseline": ()}
    vectors = {
        kind: ("vectors.cpp", (*_VECTORS, *flags, f"-DCAPABILITY={kind}"))
        for kind, flags in kinds.items()
    }
    return {"operators": ("operators.cpp", (*_OPERATORS, *includes)), **vectors}


def _run(command: list[str], aside: Path) -> None:
    done = subprocess.run(  # noqa: S603  our sources, the compiler that the user chose
        command, cwd=aside, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr]
        raise BuildError(f"the C++ compiler failed ({command[0]}): {lines[0].strip()}")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; it ends with the process that has it."""
    import fcntl  # noqa: PLC0415  Windows has none, and builds nothing

    with path.open("w") as file:
        with suppress(ImportError):  # as on Windows, where none waits
            import fcntl  # noqa: PLC0415

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
