"""100,000 trials in one folder: how time and memory of store, leases, table and report grow.

The trials take no time and run in this process; what is measured is everything around them. Run it
alone on the machine: `python benchmarks/sweep.py [SIZE…]` takes some minutes; it prints a line a
size. On a disk the most part is its own: each result is synced. TMPDIR=/dev/shm leaves that out.
"""

import pickle
import random
import resource
import sys
import tempfile
import time
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from bnkit import write_report
from bnkit.experiments import processes
from bnkit.experiments.results import SIDES, Curve, TrialResult
from bnkit.experiments.store import Store
from bnkit.experiments.summary import Comparison
from bnkit.experiments.workers import Reply

SIZES = (1_000, 10_000, 100_000)
SEEDS, RATES = 10, 10
STEPS = tuple(range(25, 1525, 25))  # as many as those of a default sweep


@dataclass(frozen=True)
class Fake:
    """A trial that takes no time: of ten seeds and learning rates each, the more the more nets."""

    number: int
    code = "fake"
    sources = {}  # noqa: RUF012  of no module
    key = property(lambda self: f"{self.number:016x}")
    bundle = property(lambda self: self.key)
    name = property(lambda self: self.key)

    def run(self) -> TrialResult:
        """Return a result as long as those of a default sweep."""
        draw = random.Random(self.number).random
        end = 0.7 + 0.2 * (self.number % 2) + 0.1 * draw()
        metric = tuple(end * (1 - 0.9 ** (n + 1)) for n in range(len(STEPS)))
        curve = Curve(STEPS, tuple(2.3 - 2 * value for value in metric), metric)
        found = replace(self.failed(""), outcome="finished", curve=curve, metric=metric[-1])
        return replace(found, test_metric=metric[-1], steps=STEPS[-1], seconds=1.0 + draw())

    def failed(self, reason: str) -> TrialResult:
        """Return the result that it failed."""
        pair, side = divmod(self.number, 2)
        setting, seed = divmod(pair, SEEDS)
        net, rate = divmod(setting, RATES)
        name = f"width={8 * (net % 50 + 1)}, depth={net // 50 + 1}"
        return TrialResult(self.key, SIDES[side], 2.0**-rate, name, seed, "failed", reason)


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
    """Print, for each size, milliseconds of this process a trial, and the memory."""
    processes.run_apart = run_here
    for size in map(int, sys.argv[1:]) if sys.argv[1:] else SIZES:
        trials = [Fake(number) for number in range(size)]
        with tempfile.TemporaryDirectory(prefix="bnkit-") as folder:
            store = Store(Path(folder) / "trials", TrialResult.from_json)
            clock = [time.process_time()]
            store.prepare(trial.key for trial in trials)
            processes.run_trials(trials, store, jobs=1, executor=Here(), on_result=id)
            clock.append(time.process_time())
            kept = store.prepare(trial.key for trial in trials)
            clock.append(time.process_time())
            assert len(kept) == size
            found = Comparison({}, {}, 0.9, "bnkit compare", tuple(kept.values()))
            str(found)
            clock.append(time.process_time())
            page = write_report(found, folder)
            clock.append(time.process_time())
            length = page.stat().st_size / 1e6
        ran, read, told, drawn = (1e3 * (b - a) / size for a, b in pairwise(clock))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(
            f"{size:7,} trials, {len(found.cells):,} settings: {ran:.2f} ms each to run, "
            f"{read:.2f} to read again, {told:.2f} for the table, {drawn:.2f} for the report of "
            f"{length:.1f} MB; {memory:,.0f} MB of memory\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
