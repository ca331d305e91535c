"""`run_trials`: many trials in processes, which may be interrupted, be killed, or die."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pickle import PicklingError

from bnkit.lab.records import TrialResult
from bnkit.lab.store import Store
from bnkit.lab.trials import Trial


def run_trials(
    trials: Sequence[Trial], store: Store, *, jobs: int, on_result: Callable[[TrialResult], object]
) -> None:
    """Run the trials that `store` has no result of, `jobs` at a time, each in a process.

    A process that dies takes its pool with it and does not say which trial it was in. Those that
    had begun are tried once more, alone; one that dies again is recorded as failed, and the others
    go on. An exception, Ctrl-C among them, ends the processes at once and passes through.
    """
    store.prepare()
    waiting = [trial for trial in trials if store.load(trial.key) is None]
    with _fresh_processes():
        _run_all(waiting, store, jobs, on_result)


def _run_all(
    waiting: list[Trial], store: Store, jobs: int, on_result: Callable[[TrialResult], object]
) -> None:
    report = _once_each(on_result)
    while waiting:
        died = _run_together(waiting, store, jobs, report)
        waiting = _still_waiting(waiting, store, report)
        if not died:
            return
        begun = [trial for trial in waiting if store.has_begun(trial.key)]
        if not begun:
            raise OSError("the processes for the trials die before they begin: is memory short?")
        for trial in begun:
            if _run_together([trial], store, 1, report):
                reason = "its process died twice, the second time alone: out of memory?"
                store.save(trial.failed(reason))
        waiting = _still_waiting(waiting, store, report)


def _still_waiting(
    trials: list[Trial], store: Store, report: Callable[[TrialResult], None]
) -> list[Trial]:
    """Report what is kept, also what a pool that died did not hand over; return the others."""
    results = {trial.key: store.load(trial.key) for trial in trials}
    for result in results.values():
        if result is not None:
            report(result)
    return [trial for trial in trials if results[trial.key] is None]


def _once_each(on_result: Callable[[TrialResult], object]) -> Callable[[TrialResult], None]:
    reported: set[str] = set()

    def report(result: TrialResult) -> None:
        if result.key not in reported:
            reported.add(result.key)
            on_result(result)

    return report


@contextmanager
def _fresh_processes() -> Iterator[None]:
    """Leave no process behind: one that was used again would run code as it was imported then."""
    from joblib.externals.loky import get_reusable_executor  # noqa: PLC0415  as in _run_together

    get_reusable_executor().shutdown(kill_workers=True)
    try:
        yield
    finally:
        get_reusable_executor().shutdown(kill_workers=True)


def _run_together(
    trials: Iterable[Trial], store: Store, jobs: int, on_result: Callable[[TrialResult], object]
) -> bool:
    """Return whether a process of the pool died before all trials were done."""
    from joblib import Parallel, delayed  # noqa: PLC0415  a tenth of a second, needed only here
    from joblib.externals.loky.process_executor import (  # noqa: PLC0415
        BrokenProcessPool,
        TerminatedWorkerError,
    )

    # Two workers at least, or joblib would run in this process; pre_dispatch bounds how many work.
    pool = Parallel(
        n_jobs=max(jobs, 2), pre_dispatch=jobs, batch_size=1, return_as="generator_unordered"
    )
    results = pool(delayed(_run_and_keep)(trial, store, os.getpid()) for trial in trials)
    try:
        with closing(results):
            for result in results:
                on_result(result)
    except TerminatedWorkerError:
        return True
    except (BrokenProcessPool, PicklingError) as error:
        raise ValueError(
            f"the processes cannot load `build` or `data` ({error}): define them in a file that "
            f"Python can import by its name, or in the program itself"
        ) from error
    return False


def _run_and_keep(trial: Trial, store: Store, parent: int) -> TrialResult:
    if os.getpid() != parent:
        _belong_to(parent)
    store.begin(trial.key)
    result = trial.run()
    store.save(result)
    return result


_guards: set[int] = set()


def _belong_to(parent: int) -> None:
    """Let this worker end with its parent, even a killed one, and leave Ctrl-C to it."""
    if os.getpid() in _guards or os.getppid() != parent:  # on a cluster, the parent is elsewhere
        return
    _guards.add(os.getpid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
