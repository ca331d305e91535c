import os
from dataclasses import replace

import pytest

from bnkit.lab.records import Curve, TrialResult
from bnkit.lab.store import Store

RESULT = TrialResult(
    "a", "plain", 0.1, "relu", 0, "finished", "", Curve((2, 4), (1.0, None), (0.5, 0.75)), 0.75, 0.7
)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "trials")
    store.prepare()
    return store


def test_a_result_comes_back_as_it_was_kept(store):
    store.begin("a")
    store.save(RESULT)
    assert store.load("a") == RESULT
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
    store.save(RESULT)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.save(replace(RESULT, accuracy=0.0))
    assert store.load("a") == RESULT
