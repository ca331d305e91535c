"""`run_trials`: many trials, each alone in a process, of this machine or of a cluster's."""

import itertools
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures import TimeoutError as TooLongError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, cast

from bnkit.experiments.leases import Leases
from bnkit.experiments.results import R, Result
from bnkit.experiments.store import Store
from bnkit.experiments.workers import ONE_THREAD, Payload, Reply, load, run, run_apart
from bnkit.platforms import JOBS
from bnkit.references import message_of
from bnkit.source_code import own_modules

R_co = TypeVar("R_co", bound=Result, covariant=True)
T = TypeVar("T")
U = TypeVar("U")

LOOK = 1.0  # seconds between two looks at what other processes do with this folder's trials
LONG = 30.0  # seconds after which a trial is told of
STARTS = 3  # a process that dies while it starts is started again
# loky starts a process anew that has grown by so many bytes: what training takes is not a leak.
GROWTH = "4e9"
IN_FLIGHT = 512  # tasks that an engine is given at a time


class Runnable(Protocol[R_co]):
    """A trial, or another thing to run once: its result follows from what `key` names."""

    @property
    def key(self) -> str:
        """The fingerprint of all that decides the result."""

    @property
    def code(self) -> str:
        """The fingerprint of what a process must have loaded; if it changes, new ones start."""

    @property
    def sources(self) -> Mapping[str, str]:
        """Fingerprints of the files of one's own modules, from which the result must come."""

    @property
    def name(self) -> str:
        """What it is, for people."""

    @property
    def bundle(self) -> Hashable:
        """What trials have in common that run on one worker of a cluster, as a pair does."""

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
    trial_timeout: float | None = None,
    executor: Executor | None = None,
    code_by_value: bool = False,
    say: Callable[[str], object] = str,
) -> dict[str, R]:
    """Return the results of trials by their keys, run `jobs` at a time, each in a process.

    With an `executor` its workers run them instead, and each starts a process for each trial. They
    import the user's modules, on the paths of this process, unless `code_by_value` sends these
    along. Other processes may work on the trials of the same folder: each trial is run by one of
    them, and this returns when all have been. `say` is told which trial has run for long.

    A trial whose process dies is tried once more, alone; one that dies again is recorded as failed,
    as is one that takes longer than `trial_timeout` seconds, and the others go on. An exception,
    also that of Ctrl-C, ends the processes at once and is raised.

    Raises ValueError for modules that cannot be sent by value; ChildProcessError where processes
    die, or fail, before they begin a trial; OSError, naming the folder, if results cannot be kept.
    """
    if not trials:
        return {}
    engine = _processes(jobs, trials[0].code) if executor is None else _cluster(executor)
    with Leases(store.folder).kept_alive() as leases, engine as workers:
        how = _How(trial_timeout, own_modules() if code_by_value else (), on_result, say)
        return _Sweep(trials, store, leases, workers, how).run()


class _How(NamedTuple):
    """How trials are sent and told of: their time limit in seconds, modules that go with them."""

    timeout: float | None
    by_value: Sequence[ModuleType]
    on_result: Callable[[Any], object]
    say: Callable[[str], object]


@dataclass(frozen=True)
class _Workers:
    """Where trials run: `submit` takes payloads and the time limit of each.

    They get `in_flight` tasks at a time, each of `bundles_per_task` bundles of trials.
    """

    submit: Callable[[Sequence[Payload], float | None], "Future[list[Reply]]"]
    in_flight: int
    bundles_per_task: int = 1
    is_here: bool = False

    def tasks_of(self, trials: Iterable[Runnable[R]]) -> Iterator[list[Runnable[R]]]:
        """Yield the trials of each task."""
        bundles: dict[Hashable, list[Runnable[R]]] = {}
        for trial in trials:
            bundles.setdefault(trial.key if self.is_here else trial.bundle, []).append(trial)
        several = iter(bundles.values())
        while some := [*itertools.islice(several, self.bundles_per_task)]:
            yield [trial for bundle in some for trial in bundle]


class _Sweep(Generic[R]):
    """The trials of one `run_trials`, and where each stands.

    A trial is `fresh` until this process first tries to claim it. It is `elsewhere` while another
    process holds it, and in `running` while it runs here; after the death of its process it waits
    in `retried`, to run alone.
    """

    def __init__(
        self,
        trials: Iterable[Runnable[R]],
        store: Store[R],
        leases: Leases,
        workers: _Workers,
        how: _How,
    ) -> None:
        self.store, self.leases, self.workers, self.how = store, leases, workers, how
        self.fresh = deque(workers.tasks_of(trials))
        self.elsewhere: dict[str, Runnable[R]] = {}
        self.running: dict[Future[list[Reply]], _Running[R]] = {}
        self.retried: deque[Runnable[R]] = deque()
        self.looked = -LOOK
        self.results: dict[str, R] = {}

    def run(self) -> dict[str, R]:
        """Return all results, once they are there."""
        try:
            while self.fresh or self.elsewhere or self.running or self.retried:
                self._begin()
                if not self.running and not self.fresh:
                    time.sleep(LOOK)
                done, _ = wait(self.running, timeout=LOOK, return_when=FIRST_COMPLETED)
                for future in done:
                    self._take(self.running.pop(future).trials, future)
                self._tell()
        finally:
            for future in self.running:
                future.cancel()
        return self.results

    def _begin(self) -> None:
        """Give the workers what they have room for."""
        if self.retried and not self.running and not self.fresh:
            self._submit([self.retried.popleft()])
            wait(self.running)  # nothing runs beside it: memory may be short
            return
        while self.fresh and len(self.running) < self.workers.in_flight:
            self._submit([*self._claimed(self.fresh.popleft())])
        if self.elsewhere and time.monotonic() - self.looked > LOOK:
            self.looked = time.monotonic()
            again, self.elsewhere = self.elsewhere, {}
            for task in self.workers.tasks_of(again.values()):
                if len(self.running) < self.workers.in_flight:
                    self._submit([*self._claimed(task)])
                else:
                    self.elsewhere |= {trial.key: trial for trial in task}

    def _claimed(self, trials: Iterable[Runnable[R]]) -> Iterator[Runnable[R]]:
        """Yield the trials that are this process's to run; note the others."""
        for trial in trials:
            if (result := self.store.load(trial.key)) is not None:
                self._note(result)
            elif not _or_full(self.store.folder, self.leases.take, trial.key):
                self.elsewhere[trial.key] = trial
            elif (result := self.store.load(trial.key)) is not None:  # it came in between
                self.leases.finish(trial.key)
                self._note(result)
            elif self.leases.deaths(trial.key) > 1:
                self._keep(trial, trial.failed(_DIED_TWICE))
            else:
                yield trial

    def _submit(self, trials: Sequence[Runnable[R]]) -> None:
        if trials:
            payloads = [_packed(trial, self.how.by_value) for trial in trials]
            future = self.workers.submit(payloads, self.how.timeout)
            self.running[future] = _Running([*trials], time.monotonic())

    def _take(self, trials: Sequence[Runnable[R]], future: "Future[list[Reply]]") -> None:
        try:
            replies = future.result()
        except (ImportError, BrokenExecutor) as error:
            raise ChildProcessError(
                f"the workers of the executor cannot run trials ({message_of(error)}); the results "
                f"so far are kept: run the same command to resume"
            ) from error
        except Exception as error:  # noqa: BLE001  each engine has its own for a worker that died
            replies = [Reply("died", reason=message_of(error))] * len(trials)
        for trial, reply in zip(trials, replies, strict=True):
            self._settle(trial, reply)

    def _settle(self, trial: Runnable[R], reply: Reply) -> None:
        match reply.kind:
            case "done":
                self._keep(trial, reply.result)
            case "edited":
                self._keep(trial, trial.failed(reply.reason))
            case "too long":
                reason = f"it took longer than {self.how.timeout:g} s, the limit of a trial"
                self._keep(trial, trial.failed(reason))
            case "died" if not _or_full(self.store.folder, self.leases.count_death, trial.key):
                self.elsewhere[trial.key] = trial  # another process has taken it over
            case "died" if self.leases.deaths(trial.key) > 1:
                told = f" ({reply.reason})" if reply.reason else ""
                self._keep(trial, trial.failed(_DIED_TWICE + told))
            case "died":
                self.retried.append(trial)
            case "cannot load":
                raise ChildProcessError(
                    f"the processes cannot load `build` or `data` ({reply.reason}): define them in "
                    f"a file that Python can import by its name, or in the program itself"
                )
            case "cannot start":
                raise ChildProcessError(
                    "the processes for the trials die before they begin: is memory short?"
                )

    def _keep(self, trial: Runnable[R], result: R) -> None:
        result = _or_full(self.store.folder, self.store.keep, result)
        self.leases.finish(trial.key)
        self._note(result)

    def _note(self, result: R) -> None:
        self.results[result.key] = result
        self.how.on_result(result)

    def _tell(self) -> None:
        """Say what has run for long, here or elsewhere."""
        now = time.monotonic()
        longest = min(self.running.values(), key=lambda task: task.begun, default=None)
        if longest is not None and now - longest.begun > LONG:
            self.how.say(f"{longest.trials[0].name} for {now - longest.begun:.0f} s")
        elif not self.running and self.elsewhere:
            key, trial = next(iter(self.elsewhere.items()))
            holder = self.leases.holder(key)
            if holder is not None:
                self.how.say(f"{trial.name} on {holder.host} since {holder.since}")
        else:
            self.how.say("")


@dataclass(frozen=True)
class _Running(Generic[R]):
    """A task that the workers were given, and when, of time.monotonic."""

    trials: Sequence[Runnable[R]]
    begun: float


_DIED_TWICE = "its process died twice, the second time alone: out of memory?"


def _or_full(folder: Path, write: Callable[[T], U], what: T) -> U:
    try:
        return write(what)
    except OSError as error:
        raise OSError(
            f"the folder {folder} cannot be written any more ({error.strerror}): make room, and "
            f"run the same command to resume; the results in it are kept"
        ) from error


def _packed(trial: Runnable[Any], by_value: Iterable[ModuleType]) -> Payload:
    import cloudpickle  # noqa: PLC0415  needed only here

    for module in by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        return Payload(cloudpickle.dumps(trial), trial.sources, [path for path in sys.path if path])
    finally:
        for module in by_value:
            cloudpickle.unregister_pickle_by_value(module)


@contextmanager
def _cluster(executor: Executor) -> Iterator[_Workers]:
    """Give the workers behind an executor of the user's, which stays open."""

    def submit(payloads: Sequence[Payload], timeout: float | None) -> "Future[list[Reply]]":
        # The scheduler of a cluster reads what it passes on, and need not have bnkit nor torch: it
        # sees a function that is built in, and bytes. The worker that reads these makes the call.
        return executor.submit(pickle.loads, pickle.dumps(_Call(payloads, timeout)))

    yield _Workers(submit, IN_FLIGHT, getattr(executor, "bundles_per_task", 1))


class _Call(NamedTuple):
    """Trials to run, which becomes the replies where it is unpickled."""

    payloads: Sequence[Payload]
    timeout: float | None

    def __reduce__(self) -> Any:
        return run_apart, (self.payloads, self.timeout)


@contextmanager
def _processes(jobs: int, code: str) -> Iterator[_Workers]:
    """Give `jobs` processes of this machine; those that are idle at the end wait for more."""
    resource_tracker.ensure_running()  # which would take Ctrl-C, were it started in a thread
    pool = _Processes(jobs, code)
    threads = ThreadPoolExecutor(jobs, "bnkit trials", initializer=_hold_ctrl_c_from_children)
    try:
        yield _Workers(lambda *task: threads.submit(pool.run, *task), jobs, is_here=True)
    except BaseException:
        pool.kill()
        raise
    finally:
        threads.shutdown(cancel_futures=True)
        pool.rest()


class _Processes:
    """The processes of one sweep, each an executor of its own, so that each can die alone."""

    _idle: ClassVar[dict[tuple[str, int], list[Any]]] = {}  # of sweeps before, by code and number
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, jobs: int, code: str) -> None:
        self._jobs, self._code = jobs, code
        self._all: list[Any] = []
        with self._lock:
            self._free = self._idle.pop((code, jobs), [])
            older = [process for others in self._idle.values() for process in others]
            self._idle.clear()
        self._all += self._free
        self._are_killed = False
        for process in older:
            process.shutdown(wait=False)

    def run(self, payloads: Sequence[Payload], timeout: float | None) -> list[Reply]:
        """Run trials in one of the processes; each may take `timeout` seconds."""
        return [self._run(payload, timeout) for payload in payloads]

    def _run(self, payload: Payload, timeout: float | None) -> Reply:
        for _ in range(STARTS):
            process = self._process()
            reply = _run_in(process, payload, timeout)
            if reply.is_clean:
                self._free.append(process)
            else:
                process.shutdown(kill_workers=True)
            if reply.kind != "cannot start":
                break
        return reply

    def _process(self) -> Any:
        from loky import ProcessPoolExecutor  # noqa: PLC0415  needed only here

        with self._lock:
            if self._are_killed:
                raise CancelledError
            if self._free:
                return self._free.pop()
            process = ProcessPoolExecutor(
                max_workers=1,
                timeout=60,  # seconds; another comparison may follow at once
                initializer=_guard(),
                initargs=(os.getpid(),),
                env={**ONE_THREAD, JOBS: str(self._jobs), "LOKY_MAX_MEMORY_LEAK_SIZE": GROWTH},
            )
            self._all.append(process)
            return process

    def rest(self) -> None:
        """Let the processes that are idle wait for another sweep of the same code."""
        with self._lock:
            if not self._are_killed:
                self._idle[self._code, self._jobs] = self._free

    def kill(self) -> None:
        """End all processes at once."""
        with self._lock:
            self._are_killed = True
        for process in self._all:
            process.shutdown(kill_workers=True)


def _run_in(process: Any, payload: Payload, timeout: float | None) -> Reply:
    from loky.process_executor import BrokenProcessPool  # noqa: PLC0415  needed only here

    try:
        refusal = process.submit(load, payload).result()
    except BrokenProcessPool:  # it died while it started
        return Reply("cannot start", is_clean=False)
    if refusal is not None:
        return replace(cast("Reply", refusal), is_clean=False)
    try:
        return cast("Reply", process.submit(run, payload.sources).result(timeout))
    except BrokenProcessPool:
        return Reply("died", is_clean=False)
    except TooLongError:
        return Reply("too long", is_clean=False)


def _hold_ctrl_c_from_children() -> None:
    """Let Ctrl-C in the terminal not reach the processes that this thread starts.

    A process inherits which signals are blocked in the thread that starts it.
    """
    if hasattr(signal, "pthread_sigmask"):  # not on Windows, where no mask is inherited
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@cache
def _guard() -> Callable[[int], None]:
    """Return the initializer of a worker, which ends when its parent has ended, killed or not.

    It is defined inside, so that it is pickled by value: importing bnkit takes a worker seconds,
    in which the parent may die.
    """

    def belong_to(parent: int) -> None:
        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(0.2)
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()

    return belong_to
