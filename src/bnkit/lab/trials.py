"""Trials: one network trained once each, run in processes, kept whole or not at all, resumed."""

import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import PicklingError

import torch

from bnkit.lab.records import Side, TrialResult
from bnkit.lab.subject import Subject
from bnkit.lab.training import Training, accuracy, train
from bnkit.observation import evaluating, preserved_random_state


@dataclass(frozen=True)
class Trial:
    """All that decides one trial's numbers; `key` is a fingerprint of it and names its file."""

    key: str
    subject: Subject
    side: Side
    activation: str
    seed: int
    training: Training

    @property
    def not_run(self) -> TrialResult:
        """The record of this trial before it has run."""
        return TrialResult(
            self.key, self.side, self.training.learning_rate, self.activation, self.seed, "not run"
        )

    def failed(self, reason: str) -> TrialResult:
        """Return the record that this trial could not be run to its end."""
        return replace(self.not_run, outcome="failed", reason=reason)

    def run(self) -> TrialResult:
        """Return what training this network once gives; the caller's generators stay as they are.

        An error of the user's own model or data is a result too: a failed trial with its reason.
        """
        with preserved_random_state(), one_thread():
            try:
                return self._run()
            except Exception as error:  # noqa: BLE001  any code of the user's may raise anything
                return self.failed(f"{type(error).__name__}: {error}")

    def _run(self) -> TrialResult:
        model = self.subject.network(self.side, self.activation, self.seed)
        loaders = self.subject.loaders(self.seed)
        trained = train(model, loaders.train, loaders.held_out, self.training)
        with evaluating(model):
            on_test = accuracy(model, loaders.test)
        return replace(
            self.not_run,
            outcome=trained.outcome,
            reason=trained.reason,
            curve=trained.curve,
            accuracy=trained.curve.accuracy[-1],
            test_accuracy=on_test,
            parameters=sum(p.numel() for p in model.parameters()),
            buffers=sum(b.numel() for b in model.buffers()),
            steps=trained.steps,
            seconds=trained.seconds,
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside: small networks are fastest so, and processes share cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Store:
    """A folder with one file for each trial's result, and a marker for each that has begun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Make the folder, and clear the markers of a run that was cut off.

        Raises OSError, saying which folder, where it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for marker in self.folder.glob("*.begun"):
                marker.unlink()
            probe = self.folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OSError(
                f"the folder {self.folder} cannot be written ({error.strerror}): choose another"
            ) from error

    def load(self, key: str) -> TrialResult | None:
        """Return the result that is kept under `key`, or None."""
        path = self._path(key)
        try:
            return TrialResult.from_json(json.loads(path.read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError) as error:
            warnings.warn(f"{path} is damaged ({error}): its trial is run again", stacklevel=2)
            return None

    def save(self, result: TrialResult) -> None:
        """Keep a result, whole or not at all: written aside, then renamed."""
        aside = self.folder / f"{result.key}.{os.getpid()}.part"
        with aside.open("w") as file:
            json.dump(result.to_json(), file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path(result.key))
        self._marker(result.key).unlink(missing_ok=True)

    def begin(self, key: str) -> None:
        """Mark a trial as begun: the marker outlives a process that dies in it."""
        self._marker(key).touch()

    def has_begun(self, key: str) -> bool:
        """Return whether a trial was begun and has not ended."""
        return self._marker(key).exists()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _marker(self, key: str) -> Path:
        return self.folder / f"{key}.begun"


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
    while waiting:
        died = _run_together(waiting, store, jobs, on_result)
        waiting = [trial for trial in waiting if store.load(trial.key) is None]
        if not died:
            return
        for trial in [trial for trial in waiting if store.has_begun(trial.key)]:
            if _run_together([trial], store, 1, on_result):
                result = trial.failed(
                    "its process died twice, the second time alone: out of memory?"
                )
                store.save(result)
                on_result(result)
            waiting.remove(trial)


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
