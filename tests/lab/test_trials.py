"""Trials end whole or not at all, whatever happens to their processes."""

import json
import math
import os
from dataclasses import replace

import pytest
import torch

from bnkit.lab.records import TrialResult
from bnkit.lab.settings import Settings
from bnkit.lab.subject import subject_of
from bnkit.lab.training import Training
from bnkit.lab.trials import Store, Trial, run_trials
from tiny import Dying, Raising, build, loaders

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


# The store


def test_a_result_comes_back_as_it_was_kept(store):
    result = trial("a").run()
    assert result.curve.steps == (2, 4)
    store.begin("a")
    store.save(result)
    assert store.load("a") == result
    assert not store.has_begun("a")
    assert [path.name for path in store.folder.iterdir()] == ["a.json"]


def test_what_is_not_there_is_none(store):
    assert store.load("absent") is None


@pytest.mark.parametrize("content", ["", '{"key": "a"', '{"key": "a"}', "[]"], ids=repr)
def test_a_damaged_file_is_named_and_its_trial_run_again(store, content):
    (store.folder / "a.json").write_text(content)
    with pytest.warns(UserWarning, match=r"a\.json is damaged .*: its trial is run again"):
        assert store.load("a") is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"the folder .*file/trials cannot be written .*another"):
        Store(tmp_path / "file" / "trials").prepare()


def test_preparing_clears_the_markers_of_a_run_that_was_cut_off(store):
    store.begin("a")
    store.prepare()
    assert not store.has_begun("a")


def test_a_save_that_fails_leaves_the_old_result(store, monkeypatch):
    result = trial("a").run()
    store.save(result)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.save(replace(result, accuracy=0.0))
    assert store.load("a") == result


# One trial


def test_a_trial_gives_the_same_numbers_again_and_leaves_the_generators_alone():
    state = torch.get_rng_state()
    first, second = (trial("a", side="batch norm").run() for _ in range(2))
    assert without_times(first) == without_times(second)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trial_that_raises_is_a_failed_one_with_its_reason():
    result = trial("a", network=Raising).run()
    assert (result.outcome, result.reason) == ("failed", "RuntimeError: out of luck")
    assert result.accuracy is None


def test_a_trial_that_diverges_is_a_result_and_its_json_is_strict():
    result = trial("a", training=Training(1e30, steps=40, evaluate_every=2)).run()
    assert result.outcome == "diverged"
    assert result.curve.loss[-1] is None
    assert not result.succeeds(0.0)
    assert math.isfinite(result.accuracy)
    json.dumps(result.to_json(), allow_nan=False)


def test_a_result_counts_parameters_and_buffers():
    plain, batch_norm = (trial("a", side=side).run() for side in ("plain", "batch norm"))
    assert (plain.parameters, plain.buffers) == (6 * 8 + 8 + 8 * 3 + 3, 0)
    assert (batch_norm.parameters, batch_norm.buffers) == (6 * 8 + 2 * 8 + 8 * 3 + 3, 2 * 8 + 1)


# Many


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
