"""`make chaos`: kills, damage and errors at random moments, in numbers that are too large for CI.

Prints one line of figures for each part; any promise that is broken ends it with an error.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

import bnkit
from bnkit.checkpoints import load
from bnkit.experiments import leases, processes
from bnkit.experiments.results import Curve, TrialResult
from bnkit.experiments.store import Store
from test_checkpoints import VERBS, hostile_plans
from zoo.checks import fingerprint, random_state


def say(figures):
    sys.stdout.write(f"{figures}\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Light:
    """A trial that takes milliseconds, and whose numbers follow from its key."""

    key: str
    code: str = "light"
    sources = {}  # noqa: RUF012  nothing of a module
    bundle = property(lambda self: self.key)
    name = property(lambda self: self.key)

    def run(self):
        time.sleep(0.005)
        draw = random.Random(self.key).random
        curve = Curve((1, 2), (draw(), draw()), (draw(), draw()))
        return replace(self.failed(""), outcome="finished", curve=curve, metric=draw())

    def failed(self, reason):
        return TrialResult(self.key, "plain", 0.1, "relu", 0, "failed", reason)


class Inline(Executor):
    """Runs a task here and now, so that a driver is killed in the midst of its files."""

    def submit(self, function, /, *args):
        future = Future()
        future.set_result(function(*args))
        return future


def run_apart(payloads, _timeout):
    return [processes.Reply("done", light.run()) for light in map(_light_of, payloads)]


def _light_of(payload):
    import pickle  # noqa: PLC0415

    return pickle.loads(payload.trial)


TRIALS = [Light(f"{number:016x}") for number in range(60)]
WANTED = {trial.key: trial.run() for trial in TRIALS}


def driven(folder, *, jobs):
    """Run what is missing, in a process that was forked; `jobs` 0 is in this very process."""
    store = Store(folder, TrialResult.from_json)
    kept = store.prepare(WANTED)
    waiting = [trial for trial in TRIALS if trial.key not in kept]
    executor = None if jobs else Inline()
    processes.run_trials(
        waiting, store, jobs=jobs or 1, executor=executor, on_result=lambda _: None
    )


def forked(folder, *, jobs):
    child = os.fork()
    if child == 0:
        os.setsid()
        status = 1
        try:
            driven(folder, jobs=jobs)
            status = 0
        except KeyboardInterrupt:
            status = 130
        finally:
            os._exit(status)
    return child


def kills(rounds, *, drivers, jobs, longest, number):
    """Kill drivers that share a folder, each after a random time, until so many were killed."""
    killed = completed = 0
    while killed < rounds:
        with tempfile.TemporaryDirectory(prefix="chaos-") as name:
            folder = Path(name) / "trials"
            while not _is_done(folder):
                for child in [forked(folder, jobs=jobs) for _ in range(drivers)]:
                    time.sleep(random.uniform(0, longest))
                    done, _ = os.waitpid(child, os.WNOHANG)
                    if not done:
                        os.killpg(child, number)
                        os.waitpid(child, 0)
                        killed += 1
                if killed >= rounds:  # the last one is left alone
                    driven(folder, jobs=jobs)
            found = Store(folder, TrialResult.from_json).results(WANTED)
            lost = {key: result for key, result in found.items() if result != WANTED[key]}
            # Who dies twice in one trial is recorded as failed, which the next run tries again
            assert all(result.outcome == "failed" for result in lost.values()), lost
            driven(folder, jobs=0)
            assert Store(folder, TrialResult.from_json).results(WANTED) == WANTED
            assert [path.name for path in folder.glob("*.lease.*")] == []
            completed += 1
    say(f"{signal.Signals(number).name}: {killed} kills, {completed} sweeps equal")


def _is_done(folder):
    return len([*folder.glob("*.json")]) == len(TRIALS)


def damage(files):
    """Flip bits of, and cut, the files of results."""
    refused = equal = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        store = Store(Path(name), TrialResult.from_json)
        for _ in range(files):
            key, wanted = random.choice([*WANTED.items()])
            store.save(wanted)
            path = Path(name) / f"{key}.json"
            content = bytearray(path.read_bytes())
            if random.random() < 0.5:
                content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            else:
                del content[random.randrange(len(content)) :]
            path.write_bytes(content)
            found = store.load(key)
            assert found in (None, wanted)
            refused, equal = refused + (found is None), equal + (found is not None)
            path.unlink()
    say(f"results: {refused + equal} damaged, {refused} refused, {equal} equal")


def plans():
    """Load checkpoints whose plans say anything."""
    refused = loaded = 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        path = Path(name) / "a.pt"
        for verb, _, _, content in hostile_plans():
            torch.save(content, path)
            try:
                load(VERBS[verb][0](), path)
                loaded += 1
            except ValueError:
                refused += 1
    say(f"plans: {refused + loaded} hostile, {refused} refused in a sentence, {loaded} loaded")


class Failing(nn.Module):
    """An activation that raises at its k-th call, in whichever copy."""

    error, left = None, 0

    def forward(self, x):
        Failing.left -= 1
        if Failing.error is not None and Failing.left == 0:
            if isinstance(Failing.error, MemoryError):
                torch.empty(2**50)  # the allocator has an error of its own
            raise Failing.error
        return x.relu()


def normalised():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), Failing(), nn.Linear(6, 2))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), Failing(), nn.Linear(6, 2))


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
CALLS = {
    "add": lambda: (plain, lambda m: bnkit.add(m, X)),
    "insert": lambda: (plain, lambda m: bnkit.insert(m, [X, X + 1])),
    "fold": lambda: (normalised, lambda m: bnkit.fold(m, X)),
    "remove": lambda: (normalised, lambda m: bnkit.remove(m, X)),
    "accelerate": lambda: (normalised, lambda m: bnkit.accelerate(m, X)),
    "convert": lambda: (normalised, lambda m: bnkit.convert(m, "frozen", X)),
    "standardize": lambda: (normalised, lambda m: bnkit.standardize(m, [X, X + 1])),
    "recalibrate": lambda: (normalised, lambda m: bnkit.recalibrate(m, [X, X + 1])),
    "recalibrate_": lambda: (normalised, lambda m: bnkit.recalibrate_(m, [X, X + 1])),
    "adapt": lambda: (normalised, lambda m: bnkit.adapt(m, [X, X + 1])),
    "explain_gap": lambda: (normalised, lambda m: bnkit.explain_gap(m, [X, X + 1])),
    "diagnose": lambda: (normalised, lambda m: bnkit.diagnose(m, [X, X + 1], example=X)),
}
ERRORS = (RuntimeError, MemoryError, StopIteration, KeyboardInterrupt)


def errors(calls):
    """Let the user's forward fail in its k-th call, in each verb; all must be as it was before."""
    tried = 0
    for name, case in CALLS.items():
        build, verb = case()
        for error in ERRORS:
            for k in range(1, calls + 1):
                model = build()
                before, draws = fingerprint(model), random_state()
                Failing.error, Failing.left = error(f"call {k}"), k
                with suppress(Exception, KeyboardInterrupt):  # judged below
                    verb(model)
                raised = Failing.left <= 0
                Failing.error = None
                if raised or name != "recalibrate_":
                    assert fingerprint(model) == before, (name, error, k)
                assert random_state() == draws, (name, error, k)
                tried += raised
    say(f"errors: {tried} injected into {len(CALLS)} verbs, all as before")


def main():
    """Run everything; the argument is a share of the full numbers, 1 by default."""
    share = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    random.seed(json.dumps(["chaos", share]))
    processes.LOOK = leases.HEARTBEAT = 0.05
    processes.run_apart = run_apart
    damage(int(600 * share))
    plans()
    errors(max(1, int(4 * share)))
    kills(int(200 * share), drivers=3, jobs=0, longest=0.3, number=signal.SIGKILL)
    kills(int(30 * share), drivers=2, jobs=0, longest=0.3, number=signal.SIGINT)
    kills(int(20 * share), drivers=1, jobs=2, longest=8.0, number=signal.SIGKILL)


if __name__ == "__main__":
    main()
