"""`run_trials`: many trials in processes, through deaths of these and interruptions."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing import resource_tracker
from typing import Protocol, TypeVar

from bnkit.experiments.store import R, Result, Store

R_co = TypeVar("R_co", bound=Result, covariant=True)


class Runnable(Protocol[R_co]):
    """A trial, or another thing to run once: its result follows from what `key` names."""

    @property
    def key(self) -> str:
        """The fingerprint of all that decides the result."""

    @property
    def code(self) -> str:
        """What the processes have to have loaded: others are made when it changes."""

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
) -> None:
    """Run the trials that `store` has no result of, `jobs` at a time, each in a process.

    A process that dies takes its pool with it and does not say which trial it was in. Those that
    had begun are tried once more, alone; one that dies again is recorded as failed, and the others
    go on. An exception, Ctrl-C among them, ends the processes at once and passes through.

    Raises ChildProcessError where processes die, or fail, before they begin a trial.
    """
    waiting = {trial.key: trial for trial in trials if store.load(trial.key) is None}

    def finish(result: R) -> None:
        del waiting[result.key]
        on_result(result)

    while waiting:
        before = len(waiting)
        if _run_together(waiting.values(), store, jobs, finish):
            return
        for result in filter(None, map(store.load, [*waiting])):  # kept, then their pool died
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


def _run_together(
    trials: Iterable[Runnable[R]], store: Store[R], jobs: int, on_result: Callable[[R], object]
) -> bool:
    """Return whether all trials were done; False if a process of the pool died before."""
    from joblib import Parallel, delayed  # noqa: PLC0415  a tenth of a second, needed only here
    from joblib.externals.loky import get_reusable_executor  # noqa: PLC0415
    from joblib.externals.loky.process_executor import (  # noqa: PLC0415
        BrokenProcessPool,
        TerminatedWorkerError,
    )

    trials = list(trials)
    jobs = min(jobs, len(trials))
    # Two workers at least, or joblib would run in this process. With one job only one of them
    # works; with several a trial lies ready for each that ends.
    pool = Parallel(
        n_jobs=max(jobs, 2),
        pre_dispatch=1 if jobs == 1 else 2 * jobs,
        batch_size=1,
        return_as="generator_unordered",
        idle_worker_timeout=60,  # seconds; another comparison may follow at once
        initializer=_guard(),
        # Of two pools with the same arguments joblib takes the old one: not after the code changed.
        initargs=(os.getpid(), trials[0].code),
    )
    results: Generator[R, None, None] = (_ for _ in ())
    try:
        with _ctrl_c_held_from_children():
            results = pool(delayed(_run_and_keep)(trial, store) for trial in trials)
        for result in results:
            on_result(result)
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
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib's, that trials were left undone
            results.close()
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
    """Start processes that a Ctrl-C in the terminal does not reach, not even while they start.

    A process inherits which signals are blocked; this one receives its own when the block ends.
    """
    resource_tracker.ensure_running()  # which would unblock it, were it started inside
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@cache
def _guard() -> Callable[[int, str], None]:
    """Return what lets a worker end with its parent, even a killed one.

    It is made in here so that it travels by value: to import bnkit takes a worker seconds, and
    the parent may die in them.
    """

    def belong_to(parent: int, _code: str) -> None:
        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(0.2)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()

    return belong_to
