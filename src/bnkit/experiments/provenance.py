"""Provenance of the numbers: fingerprints of what decides a trial; versions, machine and date."""

import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnkit import __version__
from bnkit.internals import leaves_of
from bnkit.source_code import bytes_of, source_of


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that name these plain values.

    >>> fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    True
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_fingerprint(model: nn.Module) -> str:
    """Return the fingerprint of a model's arrays, structure and the source of its own classes."""
    digest = hashlib.sha256(repr(model).encode())
    _add_arrays(digest, model)
    own = {type(m) for m in model.modules()} | {b for m in model.modules() for b in type(m).__mro__}
    for source in sorted({source_of(cls) for cls in own if not _is_ours_or_torchs(cls.__module__)}):
        digest.update(source.encode())
    return digest.hexdigest()


def array_fingerprint(model: nn.Module) -> str:
    """Return the fingerprint of a model's parameters and buffers."""
    digest = hashlib.sha256()
    _add_arrays(digest, model)
    return digest.hexdigest()


def batch_fingerprint(batch: Any) -> str:
    """Return the fingerprint of one mini-batch, any nest of tensors, arrays and other values."""
    leaves, structure = leaves_of(batch)
    digest = hashlib.sha256(structure.encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor | np.ndarray):
            _add_array(digest, "", torch.as_tensor(leaf))
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that may change a number: bnkit's and torch's."""
    return {"bnkit": __version__, "torch": torch.__version__}


def environment() -> dict[str, str]:
    """Return versions, machine, date and commit, as names and values for people to read.

    The commit is that of the git repository of the current folder, left out where there is none.

    >>> sorted(environment().keys() - {"commit"})
    ['bnkit', 'cores', 'date', 'machine', 'processor', 'python', 'torch']
    """
    return {
        **versions(),
        **_commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(usable_cores()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def machine_of(model: nn.Module) -> dict[str, str]:
    """Return on what a model is trained, as far as it changes times.

    >>> sorted(machine_of(nn.Linear(1, 1)))
    ['host', 'processor', 'threads', 'torch']
    """
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"]
    return {
        "host": platform.node(),
        "processor": torch.cuda.get_device_name(devices[0]) if devices else _processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
    }


def _commit() -> dict[str, str]:
    """The commit and whether files differ from it; nothing without git or a repository."""
    command = [
        "git",
        "describe",
        "--always",
        "--dirty=, with changes",
        "--exclude=*",
        "--abbrev=12",
    ]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": found.stdout.strip()}


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # elsewhere than on Linux


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def _add_arrays(digest: Any, model: nn.Module) -> None:
    for name, array in model.state_dict().items():
        if isinstance(array, Tensor):
            _add_array(digest, name, array)


def _add_array(digest: Any, name: str, array: Tensor) -> None:
    digest.update(f"{name} {tuple(array.shape)} {array.dtype} ".encode())
    digest.update(bytes_of(array))


def _is_ours_or_torchs(module: str) -> bool:
    return module.partition(".")[0] in ("bnkit", "torch", "builtins")
