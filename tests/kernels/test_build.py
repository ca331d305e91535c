"""Building the core: found again, never loaded damaged or for another torch, built by one."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bnkit.kernels import build

OBJECT = """#!/bin/sh
# stands for a compiler: notes that it was called, and makes its output
echo x >> {calls}
while [ "$1" != -o ]; do shift; done
echo compiled > "$2"
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bnkit"


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A compiler that takes no time; return the file in which each of its calls is a line."""
    compiler = tmp_path / "compiler"
    compiler.write_text(OBJECT.format(calls=tmp_path / "calls"))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return tmp_path / "calls"


def test_a_core_that_was_built_is_found_again(cache, calls):
    assert build.find() is None
    made = build.build()
    assert made.built
    assert made.path == build.find()
    again = build.build()
    assert (again.path, again.built) == (made.path, False)
    assert len(calls.read_text().splitlines()) == len(build._flags()) + 1  # objects and the library
    assert str(made) == f"The core was built and lies in {made.path}"
    assert {p.name for p in cache.iterdir()} == {made.path.name, f"{build.name()}.lock"}


@pytest.mark.usefixtures("calls")
def test_a_damaged_core_is_not_taken_and_built_again(cache):
    path = build.build().path
    path.write_bytes(path.read_bytes()[:-1])
    assert build.find() is None
    assert build.build().path == path
    assert build.find() == path
    assert cache.is_dir()


@pytest.mark.usefixtures("calls", "cache")
def test_a_core_for_another_torch_is_another_core(monkeypatch):
    path = build.build().path
    build.name.cache_clear()
    monkeypatch.setattr(torch, "__version__", "2.0.0")
    try:
        assert build.find() is None
        assert build.build().path != path
    finally:
        build.name.cache_clear()


@pytest.mark.usefixtures("cache")
def test_of_several_at_once_only_one_builds(calls):
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: build.build(), range(4)))
    assert sum(core.built for core in made) == 1
    assert len({core.path for core in made}) == 1
    assert len(calls.read_text().splitlines()) == len(build._flags()) + 1


@pytest.mark.usefixtures("cache")
def test_without_a_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler was found: install one \(as in"):
        build.build()


@pytest.mark.usefixtures("cache")
def test_with_a_torch_that_is_too_old_no_compiler_is_called(calls, monkeypatch):
    monkeypatch.setattr(build, "_NEEDED", "torch/new.h")
    with pytest.raises(build.BuildError, match=r"has no torch/new.h, with which .* a newer"):
        build.build()
    assert not calls.exists()


@pytest.mark.usefixtures("cache")
def test_what_the_compiler_says_is_told(tmp_path, monkeypatch):
    compiler = tmp_path / "failing"
    compiler.write_text("#!/bin/sh\necho note >&2; echo core.h:1: error: no >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(build.BuildError, match=r"failed \(.*failing\): core.h:1: error: no"):
        build.build()
    assert build.find() is None


@pytest.mark.usefixtures("calls")
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(build.BuildError, match=r"file/bnkit cannot be written .*XDG_CACHE_HOME"):
        build.build()


def in_a_process(tmp_path, **variables):
    program = "import torch, bnkit; print(bnkit.choose_kernel(torch.ones(4, 3)))"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), **variables}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    environment.pop("BNKIT_KERNEL", None)
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )


def test_where_building_is_forbidden_torch_serves_and_the_choice_says_how_to_get_it(tmp_path):
    done = in_a_process(tmp_path, BNKIT_BUILD="0")
    assert done.stdout == (
        "torch: the core is not built, and BNKIT_BUILD=0 forbids it here: run `bnkit warmup`\n"
    )
    assert not done.stderr


def test_a_library_that_cannot_be_loaded_leaves_torch(tmp_path, calls):
    done = in_a_process(tmp_path, CXX=str(tmp_path / "compiler"))
    assert done.stdout.startswith("torch: the core cannot be loaded: ")
    assert done.stderr.startswith("bnkit compiles its core for torch 2.")
    assert calls.exists()


@pytest.mark.skipif(not shutil.which("nm"), reason="needs binutils")
def test_nothing_of_a_newer_cpu_can_be_linked_into_what_runs_on_all():
    core = build.find()
    if core is None:
        pytest.skip("there is no compiled core")
    symbols = subprocess.run(["nm", "-C", core], capture_output=True, text=True, check=True).stdout
    weak = [line for line in symbols.splitlines() if " W " in line or " V " in line]
    assert not [line for line in weak if "bnkit" in line]


def test_on_windows_nothing_is_built_and_torch_serves(monkeypatch, cache):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)  # there is no such module
    with pytest.raises(build.BuildError, match="on Linux and macOS only, and torch's"):
        build.build()
    assert "Linux and macOS only" in build.load.__wrapped__().reason
    assert not cache.exists()
