"""A file appears whole or not at all, and JSON holds nothing that JSON does not know."""

import math
import os
from pathlib import Path

import pytest

from bnkit.files import is_of, strict_json, write_atomically


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def test_what_is_not_finite_is_null_and_what_is_no_json_is_text():
    document = {"a": [math.nan, math.inf, 1.5], 2: (Path("x"), None, True)}
    assert strict_json(document) == '{"a": [null, null, 1.5], "2": ["x", null, true]}'


def test_a_file_is_replaced_whole(tmp_path):
    write_atomically(tmp_path / "a.txt", b"a long old text")
    write_atomically(tmp_path / "a.txt", b"new")
    assert contents(tmp_path) == {"a.txt": b"new"}


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a.txt", b"old")

    def full(self, data):  # noqa: ARG001  the signature of write_bytes
        self.open("wb").close()
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(tmp_path / "a.txt", b"new")
    monkeypatch.undo()
    assert contents(tmp_path) == {"a.txt": b"old"}


def test_what_is_synced_may_be_written_as_windows_demands(tmp_path, monkeypatch):
    synced = []
    # Of a file that was opened to be read only, os.write raises an OSError.
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.write(file, b"")))
    write_atomically(tmp_path / "a.txt", b"new")
    assert synced == [0]
    assert contents(tmp_path) == {"a.txt": b"new"}


@pytest.mark.parametrize("kind", [int, float, float | None])
def test_an_integer_that_no_float_can_hold_is_not_a_number(kind):
    assert not is_of(10**400, kind)
    assert not is_of(-(10**400), kind)
    assert is_of(10**300, kind)
