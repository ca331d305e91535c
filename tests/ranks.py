"""Runs functions on the ranks of one gloo group, a process each, and brings back what they gave.

A process takes seconds to start, so one group runs many functions, one after the other. As a
program this file is one of the ranks.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATHS = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])


@dataclass(frozen=True)
class Outcome:
    """What a function returned on one rank, or the error that it raised: its type and text."""

    value: Any = None
    error: str = ""


def outcomes_of(file, names, folder, *, size, limit):
    """Run the functions `names` of `file` as f(rank) on `size` ranks; by name, one outcome a rank.

    A rank that died has None. Ranks that have not ended after `limit` seconds are killed, and that
    is an error, as are ranks that end with an error of their own.
    """
    with ExitStack() as running:
        ranks = [running.enter_context(start(file, names, folder, r, size)) for r in range(size)]
        try:
            wait(ranks, time.monotonic() + limit)
        finally:
            for process in ranks:
                process.kill()
    for rank, process in enumerate(ranks):
        assert process.returncode in {0, -signal.SIGKILL}, (folder / f"{rank}.err").read_text()
    return {name: [outcome_at(folder, name, rank) for rank in range(size)] for name in names}


def start(file, names, folder, rank, size):
    arguments = [__file__, file, folder, rank, size, *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}
    with (folder / f"{rank}.err").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)], env=environment, stderr=errors
        )


def wait(ranks, end):
    for rank, process in enumerate(ranks):
        try:
            process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"rank {rank} has not ended in time") from None


def outcome_at(folder, name, rank):
    file = folder / f"{name}.{rank}.pt"
    return Outcome(**torch.load(file)) if file.exists() else None


def be_a_rank(file, folder, rank, size, *names):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)  # needs no port
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    functions = vars(module_at(file))
    for name in names:
        torch.save(outcome_of(functions[name], rank), Path(folder) / f"{name}.{rank}.pt")


def outcome_of(function, rank):
    try:
        return {"value": function(rank)}
    except Exception as error:  # noqa: BLE001  the test judges it
        return {"error": f"{type(error).__name__}: {error}"}


def module_at(file):
    specification = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(specification)
    sys.modules[Path(file).stem] = module  # where pickle looks for its classes
    specification.loader.exec_module(module)
    return module


if __name__ == "__main__":
    FILE, FOLDER, RANK, SIZE, *NAMES = sys.argv[1:]
    be_a_rank(FILE, FOLDER, int(RANK), int(SIZE), *NAMES)
