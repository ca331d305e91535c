"""The threads that work on a job: the caller's own, and helpers that claim tasks beside it.

torch's own OpenMP threads are the best helpers: they wait for work in a busy loop for milliseconds
after each of torch's operations, and any other thread would have to fight them for their cores.
Where torch has no GNU OpenMP, and in a forked child, where its threads do not exist any more,
threads of our own help.
"""

import ctypes
import functools
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bnkit.platforms import after_fork

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # releases the GIL while it runs
# Threads share both: a pool is stored by setdefault, which is atomic, and _forked is written only
# in a child, before it has a second thread.
_pools: dict[int, ThreadPoolExecutor] = {}  # by number of helpers
_forked = False


def work(kernel: int, job: int, tasks: int) -> None:
    """Call the kernel at address `kernel` on the job at address `job`, on several threads at once.

    As many threads as torch uses (torch.get_num_threads()), and no more than there are tasks.
    Returns when every task is done.
    """
    threads = min(torch.get_num_threads(), tasks)
    if threads < 2:
        _callable(kernel)(job)
    elif (parallel := _openmp()) is None or _forked:
        _with_own_threads(_callable(kernel), job, threads - 1)
    else:
        parallel(kernel, job, threads, 0)


@functools.cache
def _callable(kernel: int) -> Any:
    return _FUNCTION(kernel)


@functools.cache
def _openmp() -> Any:
    """The entry of the OpenMP library that torch is linked to: run a function on all threads."""
    folder = Path(torch.__file__).parent / "lib"
    try:
        parallel = ctypes.CDLL(str(folder / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


def _with_own_threads(function: Any, job: int, helpers: int) -> None:
    """Work with helpers, but wait for none that has not begun when all tasks are claimed."""
    pool = _pool(helpers)
    futures: list[Future[Any]] = [pool.submit(function, job) for _ in range(helpers)]
    function(job)
    for future in futures:
        # A helper that has not begun has nothing left to do; one that has may still write.
        if not future.cancel():
            future.result()


def _pool(helpers: int) -> ThreadPoolExecutor:
    if helpers not in _pools:
        # Two threads may come here at once: both then use the pool that was stored first.
        _pools.setdefault(helpers, ThreadPoolExecutor(helpers, thread_name_prefix="bnkit"))
    return _pools[helpers]


def _after_fork() -> None:
    global _forked  # noqa: PLW0603  a fact about this process
    _forked = True
    _pools.clear()  # a child has its parent's pools, not its threads


after_fork(_after_fork)
