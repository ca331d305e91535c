import errno
import hashlib
import itertools
import json
import os
import re
from dataclasses import replace

import pytest

from bnkit.experiments import store as store_module
from bnkit.experiments.results import FORMAT, Curve, TrialResult
from bnkit.experiments.store import Store

RESULT = TrialResult(
    "k1", "plain", 0.1, "relu", 0, "finished", curve=Curve((5,), (0.5,), (0.9,)), metric=0.9
)
FAILED = TrialResult("k2", "plain", 0.1, "relu", 0, "failed", "out of memory")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "out" / "trials", TrialResult.from_json)
    store.prepare(["k1"])
    return store


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


def test_a_result_comes_back_equal_and_leaves_nothing_else(store):
    store.save(RESULT)
    assert store.load("k1") == RESULT
    assert names(store) == ["k1.json"]


def test_what_is_not_there_is_none(store, tmp_path):
    assert store.load("k1") is None
    assert Store(tmp_path / "nowhere", TrialResult.from_json).load("k1") is None
    (tmp_path / "file").touch()
    assert Store(tmp_path / "file" / "trials", TrialResult.from_json).load("k1") is None


def test_a_result_is_written_whole_or_not_at_all(store, monkeypatch):
    def power_cut(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(KeyboardInterrupt):
        store.save(RESULT)
    assert store.load("k1") is None
    monkeypatch.undo()
    store.save(RESULT)
    assert store.load("k1") == RESULT
    assert names(store) == ["k1.json"]


def test_what_killed_writers_left_goes_but_not_what_others_write_now(store):
    half, young = store.folder / ".k1.json.a1.part", store.folder / ".k2.json.b2.part"
    for part in (half, young):
        part.write_text('{"key": "k1", "si')
    os.utime(half, (young.stat().st_mtime - 4000,) * 2)
    store.save(RESULT)
    assert half.exists()
    store.prepare(["k1", "k2"])
    assert names(store) == [young.name, "k1.json"]


def test_a_late_second_result_is_dropped_but_not_for_a_failure(store):
    assert store.keep(FAILED) == FAILED
    again = replace(FAILED, outcome="finished", seconds=1.0)
    assert store.keep(again) == again
    assert store.keep(replace(again, seconds=2.0)) == again
    assert store.load("k2") == again


def test_a_save_that_fails_leaves_the_old_result(store, monkeypatch):
    def disk_full(*_arguments):
        raise OSError("disk full")

    store.save(RESULT)
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="disk full"):
        store.save(replace(RESULT, metric=0.0))
    assert store.load("k1") == RESULT


def test_numbers_that_json_does_not_know_are_refused_rather_than_written(store):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save(TrialResult("k1", "plain", 0.1, "relu", 0, "finished", metric=float("nan")))
    assert store.load("k1") is None


def with_checksum(fields):
    """Return the content of a file that is whole, whatever it says."""
    text = fields if isinstance(fields, str) else json.dumps(fields)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"format": {FORMAT}, "sha256": "{checksum}", "result": {text}}}'.encode()


WHOLE = RESULT.to_json()
DAMAGED = [
    b"",
    with_checksum(WHOLE)[:90],
    b"null",
    b"[1, 2]",
    b"[" * 100_000,
    b"\xff\xfe\x00",
    with_checksum({}),
    with_checksum({"curve": {}}),
    with_checksum({"curve": [1]}),
    with_checksum({"curve": {"steps": 5}}),
    with_checksum("[" * 100_000),
    with_checksum({**WHOLE, "more": 1}),
    with_checksum({**WHOLE, "key": "k2"}),
    with_checksum({**WHOLE, "metric": "0.9"}),
    with_checksum({**WHOLE, "steps": 1.5}),
    with_checksum({**WHOLE, "seed": True}),
    with_checksum({**WHOLE, "outcome": "finirhed"}),
    with_checksum({**WHOLE, "machine": {"threads": 1}}),
    with_checksum({**WHOLE, "curve": {**WHOLE["curve"], "steps": [5, 6]}}),
    with_checksum({**WHOLE, "curve": {**WHOLE["curve"], "loss": ["low"]}}),
    with_checksum(WHOLE).replace(b"0.9", b"0.8"),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_result_counts_as_not_run_with_a_warning(store, content):
    path = store.folder / "k1.json"
    path.write_bytes(content)
    message = rf"^{re.escape(str(path))} is damaged \(\w+: .*\): its trial counts as not run$"
    with pytest.warns(UserWarning, match=message):
        assert store.load("k1") is None


@pytest.mark.filterwarnings("ignore:results of another version")
@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_no_flipped_bit_is_believed(store):
    store.save(RESULT)
    path = store.folder / "k1.json"
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as file:  # faster than writing it anew
        for at, bit in itertools.product(range(len(whole)), range(8)):
            file.seek(at)
            file.write(bytes([whole[at] ^ 1 << bit]))
            assert store.load("k1") in (None, RESULT)
            file.seek(at)
            file.write(whole[at : at + 1])
    assert store.load("k1") == RESULT


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_a_folder_or_an_unreadable_file_instead_of_a_result_is_damage(store):
    (store.folder / "k1.json").mkdir()
    assert store.load("k1") is None


def test_a_run_begins_without_the_failures_and_damage_of_earlier_ones(store):
    store.save(RESULT)
    store.save(FAILED)
    (store.folder / "k3.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged"):
        store.prepare(["k1", "k2", "k3", "k4"])
    assert names(store) == ["k1.json"]


@pytest.mark.filterwarnings("ignore:.*is damaged")
@pytest.mark.parametrize("before", [None, b"[]"])
def test_what_another_process_keeps_while_a_run_begins_stays(store, monkeypatch, before):
    store.folder.mkdir(exist_ok=True)
    if before is not None:
        (store.folder / "k1.json").write_bytes(before)
    other = Store(store.folder, TrialResult.from_json)
    read = store.results

    def and_then_it_comes(keys):
        found = read(keys)
        other.save(RESULT)
        return found

    monkeypatch.setattr(store, "results", and_then_it_comes)
    assert store.prepare(["k1"]) == {}
    assert store.load("k1") == RESULT


def test_a_folder_in_which_all_is_done_need_not_be_writable(store, monkeypatch):
    store.save(RESULT)

    def read_only(*_arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(store_module, "write_atomically", read_only)
    assert store.prepare(["k1"]) == {"k1": RESULT}
    with pytest.raises(OSError, match=r"cannot be written \(Read-only file system\)"):
        store.prepare(["k1", "k2"])


def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(tmp_path):
    # A path below a file: it fails also for root, whom no mode of a folder stops.
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "trials"
    with pytest.raises(OSError, match="cannot be written") as refusal:
        Store(folder, TrialResult.from_json).prepare(["k1"])
    assert str(refusal.value) == (
        f"the folder {folder} cannot be written (Not a directory): choose another"
    )


OLD = json.dumps(RESULT.to_json())  # as bnkit 0.1.0 wrote it
NEWER = json.dumps({"format": 3, **RESULT.to_json()})


@pytest.mark.parametrize("text", [OLD, NEWER], ids=["0.1.0", "a later one"])
def test_results_of_another_version_are_not_read_which_is_said_in_one_line(store, text):
    store.save(replace(RESULT, key="k0"))
    for key in ("k1", "of another sweep"):
        (store.folder / f"{key}.json").write_text(text)
    message = (
        f"results of another version of bnkit in {store.folder}: 2; they are not read, and their "
        f"trials run again"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as warned:
        found = store.results(["k0", "k1"])
    assert len(warned) == 1
    assert list(found) == ["k0"]
    assert store.load("k1") is None


def test_a_result_of_another_version_gives_way_to_the_new_one(store):
    path = store.folder / "k1.json"
    path.write_text(OLD)
    with pytest.warns(UserWarning, match="another version of bnkit"):
        assert store.prepare(["k1"]) == {}
    assert not path.exists()
    store.save(RESULT)
    assert store.prepare(["k1"]) == {"k1": RESULT}
    assert json.loads(path.read_text())["format"] == 2


def test_each_result_is_read_once(store, monkeypatch):
    read, reader = [], store._read
    monkeypatch.setattr(store, "_read", lambda fields: read.append(fields["key"]) or reader(fields))
    for key in ("k1", "k2"):
        store.save(replace(RESULT, key=key))
    assert store.prepare(["k1", "k2", "k3"]).keys() == {"k1", "k2"}
    assert read == ["k1", "k2"]
