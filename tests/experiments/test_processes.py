import dataclasses
import os
import subprocess
import sys
import time

import pytest

import users
from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.processes import run_trials
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


def workers():
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


def test_what_is_kept_is_not_run_again(tmp_path):
    trials, store = planned(tmp_path)
    kept = dataclasses.replace(trials[0].not_run, outcome="finished", metric=0.125)
    store.save(kept)
    assert results_of(trials, store, jobs=1) == ([kept], [])


def test_trials_that_kill_their_process_are_recorded_and_the_others_go_on(tmp_path):
    trials, store = planned(tmp_path, data=users.dying(always={0, 2}), seeds=4)
    kept, came = results_of(trials, store, jobs=2)  # who works beside them goes down with them
    assert [r.outcome for r in kept] == ["failed", "finished", "failed", "finished"]
    reason = "its process died twice, the second time alone: out of memory?"
    assert {result.reason for result in kept} == {"", reason}
    assert sorted(result.key for result in came) == sorted(trial.key for trial in trials)
    assert not [trial for trial in trials if store.has_begun(trial.key)]
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
    assert workers() == []
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


def test_code_that_another_process_cannot_load_is_refused(tmp_path, module):
    trials, store = planned(tmp_path, module("raise ImportError('only here')").build)
    message = (
        r"^the processes cannot load `build` or `data` \(ImportError: only here\): define them"
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
