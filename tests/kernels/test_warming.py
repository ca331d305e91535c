import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bnkit.kernels.cpu import compilation
from bnkit.kernels.cpu.jobs import job_type
from bnkit.kernels.warming import DTYPES, Warmed, Warmth, warm


def test_the_dtypes_are_those_that_have_kernels():
    for dtype in DTYPES:
        job_type(dtype)
    others = {torch.float16, torch.int8, torch.complex64, torch.bool} - set(DTYPES)
    for dtype in others:
        with pytest.raises(TypeError, match="the kernels for the CPU take"):
            job_type(dtype)


PROGRAM = """
import json, torch
from bnkit.kernels.cpu import compilation
from bnkit.kernels.warming import warm
compilation.KERNELS = {("planes", "forward"): compilation.KERNELS["planes", "forward"]}
print(json.dumps(warm([torch.float32]).to_json()))
"""


def in_a_new_process(folder):
    """Warm one kernel up in a process that keeps it in `folder`; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_later_process_finds_the_kernels_compiled(tmp_path):
    first, second = (in_a_new_process(tmp_path) for _ in range(2))
    assert [w["compiled"] for w in first["warmed"]] == [1]
    assert [w["compiled"] for w in second["warmed"]] == [0]
    assert first["folder"] == second["folder"]
    assert tmp_path in Path(first["folder"]).parents
    assert list(Path(first["folder"]).glob("planes.*"))


class Kept:
    """What Numba gives for a kernel."""

    def __init__(self, path, hits=0):
        self._cache = self
        self.cache_path, self.cache_hits = path, hits


@pytest.fixture
def kernels(monkeypatch):
    """Compile nothing: let every kernel be kept in a folder that the test sets."""

    def keep(folder, hits=0):
        asked = []

        def kernel(*name):
            asked.append(name)
            return Kept(folder, hits)

        monkeypatch.setattr(compilation, "kernel", kernel)
        return asked

    return keep


def test_every_kernel_of_every_dtype_is_compiled_once(kernels):
    asked = kernels("cache")
    result = warm([torch.float64, torch.float32, torch.float64])
    dtypes = torch.float64, torch.float32
    assert asked == [(*name, dtype) for dtype in dtypes for name in compilation.KERNELS]
    assert [(w.dtype, w.kernels, w.compiled) for w in result.warmed] == [
        ("float64", 4, 4),
        ("float32", 4, 4),
    ]
    assert result.folder == Path("cache")


def test_what_lay_there_does_not_count_as_compiled(kernels):
    kernels("cache", hits=1)
    assert [w.compiled for w in warm().warmed] == [0, 0, 0]


def test_without_a_folder_it_says_that_nothing_is_kept(kernels):
    kernels(None)
    result = warm([torch.float32])
    assert result.folder is None
    assert "Set NUMBA_CACHE_DIR to a folder that can" in str(result)
    assert result.to_json()["folder"] is None


def test_progress_sees_every_kernel(kernels):
    kernels("cache")
    seen = []

    def progress(items):
        for item in items:
            seen.append(item)
            yield item

    warm([torch.float32], progress=progress)
    assert len(seen) == len(compilation.KERNELS)


def test_it_prints_as_a_table_with_the_folder():
    text = str(Warmth((Warmed("float32", 4.2, 4, 3),), Path("some/cache")))
    assert " float32   4.2       3 of 4" in text
    assert text.endswith("\n\nThey are kept in some/cache")


def test_no_dtype_and_others_are_refused():
    with pytest.raises(ValueError, match=r"^`dtypes` is empty: give at least one$"):
        warm([])
    with pytest.raises(TypeError, match=r"^`dtypes` holds torch\.float16: there are kernels for t"):
        warm([torch.float32, torch.float16])
