"""`run_trials`: many trials, each in a process of its own."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing import resource_tracker
from typing import Protocol, TypeVar

from bnkit.experiments.results import R, Result
from bnkit.experiments.store import Store
from bnkit.platforms import JOBS

R_co = TypeVar("R_co", bound=Result, covariant=True)

# A worker has one thread, whichever library asks: the trials share the cores.
ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMBA_NUM_THREADS",
    ),
    "1",
)


class Runnable(Protocol[R_co]):
    """A trial, or another thing to run once: its result follows from what `key` names."""

    @property
    def key(self) -> str:
        """The fingerprint of all that decides the result."""

    @property
    def code(self) -> str:
        """The fingerprint of what a process must have loaded; if it changes, new ones start."""

    def run(self) -> R_co:
        """Return the result; an error of what is run is one too."""

    def failed(self, reason: str) -> R_co:
        """Return the result that it could not be run to its end."""


def run_trials(
    trials: Sequence[Runnable[R]],
    store: Store[R],
    *,
    jobs: int,
    on_result: Callable[[R], object],
) -> dict[str, R]:
    """Return the results of trials by their keys, run `jobs` at a time, each in a process.

    A process that dies takes its pool with it and does not say which trial it was in. Those that
    had begun are tried once more, alone; one that dies again is recorded as failed, and the others
    go on. An exception, also that of Ctrl-C, ends the processes at once and is raised.

    Raises ChildProcessError where processes die, or fail, before they begin a trial.
    """
    waiting = {trial.key: trial for trial in trials}
    results: dict[str, R] = {}

    def finish(result: R) -> None:
        results[result.key] = result
        del waiting[result.key]
        on_result(result)

    while waiting:
        before = len(waiting)
        if _run_together(waiting.values(), store, jobs, finish):
            break
        # A worker had kept these, and its pool died before it could say so.
        for result in store.results(waiting).values():
            finish(result)
        begun = [trial for trial in waiting.values() if store.has_begun(trial.key)]
        if not begun and len(waiting) == before:
            raise ChildProcessError(
                "the processes for the trials die before they begin: is memory short?"
            )
        for trial in begun:
            if not _run_together([trial], store, 1, finish):
                result = trial.failed(
                    "its process died twice, the second time alone: out of memory?"
                )
                store.save(result)
                finish(result)
    return results


def _run_together(
    trials: Iterable[Runnable[R]], store: Store[R], jobs: int, on_result: Callable[[R], object]
) -> bool:
    """Return whether all trials were done; False if a process of the pool died before."""
    from loky import as_completed, get_reusable_executor  # noqa: PLC0415  needed only here
    from loky.process_executor import (  # noqa: PLC0415
        BrokenProcessPool,
        TerminatedWorkerError,
    )

    trials = list(trials)
    try:
        with _ctrl_c_held_from_children():
            pool = get_reusable_executor(
                max_workers=min(jobs, len(trials)),
                timeout=60,  # seconds; another comparison may follow at once
                initializer=_guard(),
                # A pool with the same arguments is used again: not after the code has changed.
                initargs=(os.getpid(), trials[0].code),
                env={**ONE_THREAD, JOBS: str(jobs)},
            )
            futures = [pool.submit(_run_and_keep, trial, store) for trial in trials]
        for future in as_completed(futures):
            on_result(future.result())
    except TerminatedWorkerError:
        return False
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"the processes cannot load `build` or `data` ({_last_line(error)}): define them in a "
            f"file that Python can import by its name, or in the program itself"
        ) from error
    except BaseException:
        get_reusable_executor(reuse=True).shutdown(kill_workers=True)
        raise
    return True


def _last_line(error: BaseException) -> str:
    """Return the last line of a traceback that came from another process."""
    lines = str(error.__cause__ or error).strip(' "\n').splitlines()
    return lines[-1] if lines else str(error)


def _run_and_keep(trial: Runnable[R], store: Store[R]) -> R:
    store.begin(trial.key)
    result = trial.run()
    store.save(result)
    return result


@contextmanager
def _ctrl_c_held_from_children() -> Iterator[None]:
    """Start processes that Ctrl-C in the terminal does not reach, not even while they start.

    A process inherits which signals are blocked; this one receives its own after the block.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where no mask is inherited
        yield
        return
    resource_tracker.ensure_running()  # which would unblock it, were it started inside
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@cache
def _guard() -> Callable[[int, str], None]:
    """Return the initializer of a worker, which ends when its parent has ended, killed or not.

    It is defined inside, so that it is pickled by value: importing bnkit takes a worker seconds,
    in which the parent may die.
    """

    def belong_to(parent: int, _code: str) -> None:
        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(0.2)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()

    return belong_to
