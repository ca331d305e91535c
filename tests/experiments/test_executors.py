"""Trials on clusters: real ones on this machine, and whichever executor a user has."""

import dataclasses
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

import users
from bnkit.experiments import workers
from bnkit.experiments.comparison import compare, plan_comparison
from bnkit.experiments.executors import connected
from bnkit.experiments.processes import run_trials
from bnkit.experiments.settings import Settings
from bnkit.experiments.workers import Reply

TESTS = Path(__file__).parents[1]
SMALL = {"learning_rates": [0.1], "steps": 4, "evaluate_every": 2}


def planned(folder, build=users.build, data=users.data_loaders, *, seeds=1):
    """Return the trials of both sides of a small sweep, and their store, ready to run."""
    sweep = plan_comparison(build, data, settings=Settings(seeds=seeds, **SMALL), out=folder)
    sweep.store.prepare(trial.key for trial in sweep.trials)
    return sweep.trials, sweep.store


def run(trials, store, executor, **options):
    results = run_trials(
        trials, store, jobs=1, executor=executor, on_result=lambda _: None, **options
    )
    return [results[trial.key] for trial in trials]


def timeless(results):
    return [dataclasses.replace(result, seconds=0.0) for result in results]


@pytest.fixture(scope="module")
def dask():
    """A scheduler and two workers, each a process of its own on the loopback interface."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    # As of another machine: they do not have this program's paths, but find bnkit.
    source = str(TESTS.parent / "src")
    environment = {**os.environ, "PYTHONPATH": source, "PYTHONWARNINGS": "ignore"}
    options = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    scheduler = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", "0"], text=True, **options
    )
    address = next(
        found[1] for line in scheduler.stderr if (found := re.search(r"at: +(\S+)", line))
    )
    threading.Thread(target=scheduler.stderr.read, daemon=True).start()
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-dashboard"]
    workers = [
        subprocess.Popen([*command, "--nthreads", "2"], **{**options, "stderr": subprocess.DEVNULL})
        for _ in range(2)
    ]
    with distributed.Client(address) as client:
        client.wait_for_workers(2, timeout=120)
        yield address
    for process in [*workers, scheduler]:
        process.terminate()
        process.wait(timeout=30)
    scheduler.stderr.close()


def test_a_cluster_of_dask_gives_the_numbers_and_the_keys_of_this_machine(dask, tmp_path):
    trials, store = planned(tmp_path, seeds=2)
    with connected(dask.replace("tcp", "dask"), tmp_path, {}) as executor:
        found = run(trials, store, executor)
    assert timeless(found) == timeless(trial.run() for trial in trials)
    assert store.results(trial.key for trial in trials) == {r.key: r for r in found}
    assert len([*store.folder.iterdir()]) == len(trials)  # results, and no lease


def test_a_worker_of_dask_that_is_killed_costs_nothing(dask, tmp_path):
    trials, store = planned(tmp_path, data=users.killing_what_runs_it(tmp_path), seeds=2)
    with connected(dask.replace("tcp", "dask"), tmp_path, {}) as executor:
        found = run(trials, store, executor)
    assert (tmp_path / "killed-0").exists()
    assert timeless(found) == timeless(trial.run() for trial in trials)


def test_code_that_a_cluster_cannot_import_is_sent_by_value(dask, tmp_path):
    program = tmp_path / "elsewhere" / "mine.py"
    program.parent.mkdir()
    program.write_text(
        "import torch\ndef build():\n    return torch.nn.Sequential("
        "torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))\n"
        "def data():\n    x = torch.randn(40, 4)\n"
        "    batches = [(x, x[:, :3].argmax(1))]\n    return batches, batches\n"
    )
    script = f"""
import sys
from bnkit.experiments.executors import connected
import bnkit, mine
sys.path.remove({str(program.parent)!r})  # so that the workers do not find it
with connected({dask.replace("tcp", "dask")!r}, None, {{}}) as executor:
    for by_value in (False, True):
        try:
            found = bnkit.compare(mine.build, mine.data, learning_rates=[0.1], seeds=1, steps=2,
                                  executor=executor, code_by_value=by_value, progress=False)
            print([trial.outcome for trial in found.trials])
        except ChildProcessError as error:
            print(error)
"""
    paths = [str(program.parent), str(TESTS.parent / "src")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    told = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert told[0].startswith(
        "the processes cannot load `build` or `data` (ModuleNotFoundError: No module named 'mine')"
    )
    assert told[1] == "['finished', 'finished']"


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor_serves_and_its_threads_share_no_generators(kind, tmp_path):
    trials, store = planned(tmp_path, seeds=2 if kind is ThreadPoolExecutor else 1)
    with kind(2) as executor:
        assert timeless(run(trials, store, executor)) == timeless(trial.run() for trial in trials)


def test_a_trial_that_dies_or_hangs_on_a_cluster_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trials, store = planned(tmp_path, data=users.dying_apart(seed=0), seeds=2)
    with ThreadPoolExecutor(2) as executor:
        found = run(trials, store, executor)
    assert [result.outcome for result in found] == ["failed", "failed", "finished", "finished"]
    reason = "its process died twice, the second time alone: out of memory? (exit code -9)"
    assert found[0].reason == reason


class Recording(ThreadPoolExecutor):
    """Notes how many trials each task has."""

    def __init__(self, **options):
        super().__init__(1)
        self.sizes = []
        vars(self).update(options)

    def submit(self, function, /, call):
        future = super().submit(function, call)
        self.sizes.append(len(future.result()))
        return future


def test_both_sides_of_a_pair_are_one_task_and_several_pairs_where_a_task_is_dear(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(workers, "_run_apart", lambda *_: Reply("died", reason="not run"))
    alone = [1] * 6  # each trial once more
    for per_task, sizes in ((1, [2, 2, 2, *alone]), (2, [4, 2, *alone])):
        trials, store = planned(tmp_path / str(per_task), seeds=3)
        with Recording(bundles_per_task=per_task) as executor:
            run(trials, store, executor)
        assert executor.sizes == sizes


class Broken(Executor):
    """An executor whose workers do not have bnkit."""

    def submit(self, _function, /, *_args):
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(__import__, "bnkit_of_no_worker")


def test_workers_without_bnkit_end_the_run_in_one_sentence(tmp_path):
    trials, store = planned(tmp_path)
    message = (
        "the workers of the executor cannot run trials (ModuleNotFoundError: No module named "
        "'bnkit_of_no_worker'); the results so far are kept: run the same command to resume"
    )
    with pytest.raises(ChildProcessError, match=f"^{re.escape(message)}$"):
        run(trials, store, Broken())
    assert [*store.folder.iterdir()] == []


def test_jobs_and_an_executor_are_refused_together():
    with pytest.raises(ValueError, match="`jobs` is 2, processes of this machine, and `executor`"):
        compare(users.build, users.loaders, jobs=2, executor=Broken(), **SMALL)
    with pytest.raises(ValueError, match="`trial_timeout` is 0: pass a positive"):
        compare(users.build, users.loaders, trial_timeout=0, **SMALL)


@pytest.mark.parametrize(("address", "engine"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_is_named_with_its_extra(address, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, engine, None)
    message = rf"--executor {address} needs {engine}, which is not installed: pip install"
    with pytest.raises(ModuleNotFoundError, match=message), connected(address, Path(), {}):
        pass
