"""Trials in processes end whole or not at all, whatever happens to the processes."""

from dataclasses import replace

import pytest

from bnkit.lab import running
from bnkit.lab.records import TrialResult
from bnkit.lab.running import run_trials
from bnkit.lab.settings import Settings
from bnkit.lab.store import Store
from bnkit.lab.subject import subject_of
from bnkit.lab.training import Training
from bnkit.lab.trials import Trial
from tiny import Dying, build, loaders

STEPS = Training(0.1, steps=4, evaluate_every=2)


def trial(key, *, network=build, side="plain", training=STEPS, seed=0):
    subject = subject_of(network, loaders, Settings())
    return Trial(key, subject, side, "as built", seed, training)


def without_times(result):
    return replace(result, seconds=0.0)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "trials")
    store.prepare()
    return store


def test_processes_that_die_are_recorded_and_the_others_go_on(store):
    trials = [trial("a"), trial("d", network=Dying), trial("b"), trial("e", network=Dying)]
    trials += [trial("c", side="batch norm")]
    seen = []
    run_trials(trials, store, jobs=2, on_result=seen.append)
    outcomes = {key: store.load(key).outcome for key in "abcde"}
    assert outcomes == dict.fromkeys("abc", "finished") | dict.fromkeys("de", "failed")
    assert "died twice" in store.load("d").reason
    assert {result.key for result in seen} == set("abcde")
    assert without_times(store.load("a")) == without_times(trial("a").run())


def test_what_is_there_is_not_run_again(store):
    kept = TrialResult("a", "plain", 0.1, "as built", 0, "finished", accuracy=0.123)
    store.save(kept)
    seen = []
    run_trials([trial("a")], store, jobs=2, on_result=seen.append)
    assert seen == []
    assert store.load("a") == kept


def test_processes_that_die_before_any_trial_begins_are_an_error(store, monkeypatch):
    monkeypatch.setattr(running, "_run_together", lambda *_: True)
    with pytest.raises(OSError, match="die before they begin"):
        run_trials([trial("a")], store, jobs=2, on_result=list)
