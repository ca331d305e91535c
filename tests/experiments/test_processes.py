import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict

import pytest

import users
from bnkit.experiments import workers
from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.leases import Leases
from bnkit.experiments.processes import _packed, _Processes, run_trials
from bnkit.experiments.settings import Settings

STEPS = {"steps": 4, "evaluate_every": 2}


def planned(folder, build=users.build, data=users.loaders, *, seeds=1, **settings):
    """Return the trials of the plain network of a small sweep, and their store, ready to run."""
    options = Settings(learning_rates=[0.1], seeds=seeds, **STEPS, **settings)
    sweep = plan_comparison(build, data, settings=options, out=folder)
    trials = [trial for trial in sweep.trials if trial.side == "plain"]
    sweep.store.prepare(trial.key for trial in trials)
    return trials, sweep.store


def results_of(trials, store, *, jobs):
    """Run what has no result; return all in order, and the new in the order of their coming."""
    came = []
    kept = store.prepare(trial.key for trial in trials)
    waiting = [trial for trial in trials if trial.key not in kept]
    found = run_trials(waiting, store, jobs=jobs, on_result=came.append)
    assert found == {result.key: result for result in came}
    assert kept | found == store.results(trial.key for trial in trials)
    return [(kept | found)[trial.key] for trial in trials], came


def timeless(results):
    return [dataclasses.replace(result, seconds=0.0) for result in results]


def workers_here():
    """Return the numbers of this process's children that run trials."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return [line.split()[0] for line in listed.splitlines() if "popen_loky" in line]


def test_other_processes_give_the_same_numbers_however_many_they_are(tmp_path):
    data = users.data_loaders
    here = [trial.run() for trial in planned(tmp_path, data=data, seeds=3)[0]]
    for jobs in (1, 2):
        trials, store = planned(tmp_path / str(jobs), data=data, seeds=3)
        kept, came = results_of(trials, store, jobs=jobs)
        assert timeless(kept) == timeless(here)
        assert sorted(result.key for result in came) == sorted(trial.key for trial in trials)


def test_a_process_that_has_grown_runs_the_next_trial_too(tmp_path):
    """It is started once: torch is imported once, and no warning of a leak reaches the user."""
    trials, store = planned(tmp_path, data=users.growing(tmp_path), seeds=2)
    results_of(trials, store, jobs=1)
    processes = (tmp_path / "processes").read_text().split()
    assert len(processes) == 2
    assert len({*processes}) == 1


def test_what_is_kept_is_not_run_again(tmp_path):
    trials, store = planned(tmp_path)
    kept = dataclasses.replace(trials[0].not_run, outcome="finished", metric=0.125)
    store.save(kept)
    assert results_of(trials, store, jobs=1) == ([kept], [])


def test_trials_that_kill_their_process_are_recorded_and_the_others_go_on(tmp_path):
    trials, store = planned(tmp_path, data=users.dying(always={0, 2}), seeds=4)
    kept, came = results_of(trials, store, jobs=2)
    assert [r.outcome for r in kept] == ["failed", "finished", "failed", "finished"]
    reason = "its process died twice, the second time alone: out of memory?"
    assert {result.reason for result in kept} == {"", reason}
    assert sorted(result.key for result in came) == sorted(trial.key for trial in trials)
    assert not [*store.folder.glob("*.lease.*")]
    assert timeless(kept[1::2]) == timeless(trial.run() for trial in trials[1::2])


def test_a_trial_that_is_killed_once_is_tried_again_and_gives_its_numbers(tmp_path):
    trials, store = planned(tmp_path, data=users.dying(once={0}, folder=tmp_path))
    kept, came = results_of(trials, store, jobs=1)
    assert (tmp_path / "died-0").exists()
    assert came == kept
    assert timeless(kept) == timeless(trial.run() for trial in trials)


def test_an_error_ends_the_processes_at_once_and_passes_through(tmp_path):
    trials, store = planned(tmp_path, seeds=3)
    endless = dataclasses.replace(trials[1].training, steps=10**9, evaluate_every=10**9)
    trials[1] = dataclasses.replace(trials[1], training=endless)

    def interrupt(_result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(trials, store, jobs=2, on_result=interrupt)
    assert workers_here() == []
    finished = [trial for trial in trials if store.load(trial.key)]
    assert finished
    assert trials[1] not in finished


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return what makes a module of one's own that does something else in a worker."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(in_a_worker):
        (tmp_path / "changing.py").write_text(
            "import os, users\n"
            f"if users.in_a_worker():\n    {in_a_worker}\n"
            "def build():\n    return users.build()\n"
        )
        import changing  # noqa: PLC0415  it has just been written

        return changing

    yield write
    sys.modules.pop("changing", None)


def test_processes_that_die_before_they_begin_are_not_started_for_ever(tmp_path, module):
    trials, store = planned(tmp_path, module("os._exit(3)").build)
    message = "^the processes for the trials die before they begin: is memory short"
    with pytest.raises(ChildProcessError, match=message):
        results_of(trials, store, jobs=1)


def test_a_process_that_dies_once_while_it_starts_is_started_again(tmp_path, module):
    died = tmp_path / "died"
    once = f"open({str(died)!r}, 'x').close() or os._exit(9)"
    trials, store = planned(
        tmp_path, module(f"os.path.exists({str(died)!r}) or {once}").build, seeds=2
    )
    kept, _ = results_of(trials, store, jobs=1)
    assert died.exists()
    assert [result.outcome for result in kept] == ["finished"] * 2


def test_results_never_come_from_code_that_was_edited_after_the_planning(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "import torch, users\nSCALE = {}\nclass Scaled(torch.nn.Linear):\n"
    text += "    def forward(self, x): return SCALE * super().forward(x)\n"
    text += "def build(): return torch.nn.Sequential(Scaled(4, 8), torch.nn.ReLU(), Scaled(8, 3))\n"
    source = tmp_path / "scaled.py"
    source.write_text(text.format("1.0"))
    import scaled  # noqa: PLC0415  it has just been written

    trials, store = planned(tmp_path / "out", scaled.build)
    source.write_text(text.format("0.0"))  # the initial arrays are the same
    kept, _ = results_of(trials, store, jobs=1)
    source.write_text(text.format("1.0"))
    again, _ = results_of(trials, store, jobs=1)
    sys.modules.pop("scaled")
    assert [(result.outcome, result.reason) for result in kept] == [
        (
            "failed",
            "the file of module 'scaled' was edited after the trials were planned: run it again",
        )
    ]
    assert [result.outcome for result in again] == ["finished"]
    assert timeless(again) == timeless(trial.run() for trial in trials)


def test_what_is_imported_only_while_a_trial_runs_is_looked_at_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    later = tmp_path / "imported_later.py"
    later.write_text("SCALE = 1.0\n")
    (tmp_path / "lazy.py").write_text(
        "import torch\nclass Lazy(torch.nn.Linear):\n    def forward(self, x):\n"
        "        from imported_later import SCALE\n        return SCALE * super().forward(x)\n"
        "def build(): return torch.nn.Sequential(Lazy(4, 8), torch.nn.ReLU(), Lazy(8, 3))\n"
    )
    import lazy  # noqa: PLC0415  it has just been written

    trials, store = planned(tmp_path / "out", lazy.build)
    later.write_text("SCALE = 0.0\n")
    (result,), _ = results_of(trials, store, jobs=1)
    for name in ("lazy", "imported_later"):
        sys.modules.pop(name)
    assert (result.outcome, result.metric) == ("failed", None)
    assert "'imported_later' was edited" in result.reason


def test_trials_run_in_processes_whatever_the_program_chose_elsewhere(tmp_path):
    # joblib.parallel_config(backend="threading") and threads of the caller changed numbers
    data = users.shuffled_by_torch
    here = [trial.run() for trial in planned(tmp_path, data=data, seeds=4)[0]]
    trials, store = planned(tmp_path / "out", data=data, seeds=4)
    with ThreadPoolExecutor(2) as threads:
        in_threads = [*threads.map(lambda trial: trial.run(), trials)]
    assert timeless(in_threads) == timeless(here)
    assert timeless(results_of(trials, store, jobs=2)[0]) == timeless(here)


def test_a_trial_that_hangs_is_ended_and_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trials, store = planned(tmp_path, data=users.stuck_at_the_second_seed, seeds=3)
    results = run_trials(trials, store, jobs=2, on_result=lambda _: None, trial_timeout=8)
    assert [results[trial.key].outcome for trial in trials] == ["finished", "failed", "finished"]
    assert results[trials[1].key].reason == "it took longer than 8 s, the limit of a trial"


def test_a_process_in_which_a_trial_left_a_thread_behind_is_ended(tmp_path):
    trials, store = planned(tmp_path, data=users.leaving_a_thread, seeds=2)
    kept, _ = results_of(trials, store, jobs=1)
    assert [result.outcome for result in kept] == ["finished"] * 2
    assert workers_here() == []


class Recycled:
    """A process of loky, in whose place loky puts another after a call: it had grown too large."""

    def __init__(self):
        self.is_ended = False

    def submit(self, function, argument):
        future = Future()
        future.set_result(function(argument))
        if function is workers.load and len(PROCESSES) == 1:
            workers._loaded = None  # as in a process that has just begun
        return future

    def shutdown(self, *, kill_workers):
        self.is_ended = kill_workers


PROCESSES = []


def test_a_trial_never_runs_in_a_process_that_has_not_loaded_it(tmp_path, monkeypatch):
    trials, _ = planned(tmp_path)
    PROCESSES.clear()
    monkeypatch.setattr(
        _Processes, "_process", lambda _: PROCESSES.append(Recycled()) or PROCESSES[-1]
    )
    (reply,) = _Processes(1, "code").run([_packed(trials[0], ())], timeout=None)
    assert (reply.kind, reply.result.outcome) == ("done", "finished")
    assert [process.is_ended for process in PROCESSES] == [True, False]


def test_a_folder_that_is_full_ends_the_run_in_one_sentence(tmp_path, monkeypatch):
    trials, store = planned(tmp_path, seeds=3)
    keep, kept = store.keep, []

    def full_after_the_first(result):
        if kept:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept.append(result)
        return keep(result)

    monkeypatch.setattr(store, "keep", full_after_the_first)
    message = (
        f"the folder {store.folder} cannot be written any more (No space left on device): make "
        f"room, and run the same command to resume; the results in it are kept"
    )
    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        run_trials(trials, store, jobs=1, on_result=lambda _: None)
    assert len(store.results(trial.key for trial in trials)) == 1
    assert not [*store.folder.glob("*.lease.*")]


SHARING = """
import sys, users
from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.settings import Settings
options = Settings(learning_rates=[0.1], seeds=6, steps=4, evaluate_every=2)
sweep = plan_comparison(users.build, users.loaders, settings=options, out=sys.argv[1])
from bnkit.experiments.processes import run_trials
sweep.store.prepare(trial.key for trial in sweep.trials)
results = run_trials(sweep.trials, sweep.store, jobs=1, on_result=lambda _: None)
print(len(results), sorted({r.outcome for r in results.values()}))
"""


def test_several_processes_share_the_trials_of_one_folder(tmp_path):
    command = [sys.executable, "-c", SHARING, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [run.communicate()[0].strip() for run in runs]
    assert told == ["12 ['finished']"] * 2
    assert len([*(tmp_path / "trials").iterdir()]) == 12  # no lease and no part is left


def test_who_died_twice_in_other_processes_is_not_tried_again(tmp_path):
    trials, store = planned(tmp_path, seeds=2)
    for generation in (1, 2):  # of processes of this machine that are no more
        holder = {**asdict(Leases(store.folder)._self), "process": 2**22 + generation}
        (store.folder / f"{trials[0].key}.lease.{generation}").write_text(json.dumps(holder))
    kept, _ = results_of(trials, store, jobs=1)
    assert [result.outcome for result in kept] == ["failed", "finished"]
    assert not [*store.folder.glob("*.lease.*")]


def test_code_that_another_process_cannot_load_is_refused(tmp_path, module):
    trials, store = planned(tmp_path, module("raise ImportError('only here')").build)
    message = (
        r"^the processes cannot load `build` or `data` \(ImportError: only here \(.*, line 3\)\): "
        r"define them"
    )
    with pytest.raises(ChildProcessError, match=message):
        results_of(trials, store, jobs=1)


def test_processes_that_hold_older_code_are_not_used_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    parameters = []
    for width in (8, 9):
        text = f"from torch import nn\ndef build():\n    first = nn.Linear(4, {width})\n"
        end = f"    return nn.Sequential(first, nn.ReLU(), nn.Linear({width}, 3))\n"
        (tmp_path / "edited.py").write_text(text + end)
        sys.modules.pop("edited", None)
        os.utime(tmp_path / "edited.py", (time.time() + width,) * 2)  # or the old byte code serves
        import edited  # noqa: PLC0415  it has just been written

        trials, store = planned(tmp_path / "out", edited.build)
        parameters += [result.parameters for result in results_of(trials, store, jobs=1)[0]]
    sys.modules.pop("edited")
    assert parameters == [4 * 8 + 8 + 8 * 3 + 3, 4 * 9 + 9 + 9 * 3 + 3]
