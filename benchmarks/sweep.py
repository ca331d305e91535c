"""100,000 trials in one folder: how time and memory of the store and the leases grow.

The trials take no time and run in this process; what is measured is everything around them. Run it
alone on the machine: `python benchmarks/sweep.py` takes some minutes; it prints a line a size.
"""

import pickle
import resource
import sys
import tempfile
import time
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnkit.experiments import processes
from bnkit.experiments.results import Curve, TrialResult
from bnkit.experiments.store import Store
from bnkit.experiments.workers import Reply

SIZES = (1_000, 10_000, 100_000)


@dataclass(frozen=True)
class Fake:
    """A trial that takes no time."""

    key: str
    code = "fake"
    sources = {}  # noqa: RUF012  of no module
    bundle = property(lambda self: self.key)
    name = property(lambda self: self.key)

    def run(self) -> TrialResult:
        """Return a result as long as those of a default sweep."""
        steps = tuple(range(25, 1525, 25))
        curve = Curve(steps, (0.125,) * len(steps), (0.875,) * len(steps))
        return replace(self.failed(""), outcome="finished", curve=curve, metric=0.875)

    def failed(self, reason: str) -> TrialResult:
        """Return the result that it failed."""
        return TrialResult(self.key, "plain", 0.1, "relu", 0, "failed", reason)


class Here(Executor):
    """Runs each task at once, in this process, without the start of another."""

    def submit(self, function: Any, /, *args: Any, **_: Any) -> "Future[Any]":
        """Return the future of what has just been run."""
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future


def run_here(payloads: Any, _timeout: float | None) -> list[Reply]:
    """Stand for `workers.run_apart`."""
    return [Reply("done", pickle.loads(payload.trial).run()) for payload in payloads]


def main() -> None:
    """Print, for each size, microseconds a trial to run and to read again, and the memory."""
    processes.run_apart = run_here
    for size in SIZES:
        trials = [Fake(f"{number:016x}") for number in range(size)]
        with tempfile.TemporaryDirectory(prefix="bnkit-") as folder:
            store = Store(Path(folder) / "trials", TrialResult.from_json)
            began = time.perf_counter()
            store.prepare(trial.key for trial in trials)
            processes.run_trials(trials, store, jobs=1, executor=Here(), on_result=id)
            ran = time.perf_counter()
            kept = store.prepare(trial.key for trial in trials)
            read = time.perf_counter()
        assert len(kept) == size
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(
            f"{size:7,} trials: {1e6 * (ran - began) / size:,.0f} µs each, read again "
            f"{1e6 * (read - ran) / size:,.0f} µs each, {memory:,.0f} MB\n"
        )


if __name__ == "__main__":
    main()
