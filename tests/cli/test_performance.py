import json
from pathlib import Path

import pytest

from bnkit.benchmarking import CASES, QUICK, Case, bench, benchmark
from bnkit.kernels import build
from bnkit.kernels.build import Core
from cli.commands import run

SMALL = (Case((4, 3, 5, 5)), Case((4, 3, 5, 5), channels_last=True))


@pytest.fixture
def brief(monkeypatch, tmp_path):
    """Two small cases; return the options with which they were measured."""
    asked = []

    def measure(cases, *, progress, **options):
        asked.append((cases, options))
        return bench(list(progress(SMALL)), seconds=0.0)

    monkeypatch.setattr(benchmark, "bench", measure)
    monkeypatch.chdir(tmp_path)
    return asked


def test_the_bandwidth_comes_first_then_the_table(brief):
    code, stdout, _ = run("bench")
    assert code == 0
    first, empty, headers, *_ = stdout.splitlines()
    assert first.startswith("A copy moves ")
    assert first.endswith(" GB/s.")
    assert empty == ""
    assert "times faster" in headers
    assert "4x3x5x5, channels last" in stdout
    assert brief == [(CASES, {"seconds": 2.0, "compiled": False})]


def test_the_options_are_taken(brief):
    assert run("bench --quick --compile --seconds 0.5")[0] == 0
    assert brief == [(QUICK, {"seconds": 0.5, "compiled": True})]


@pytest.mark.usefixtures("brief")
def test_json_alone_is_on_stdout():
    document = json.loads(run("bench --json")[1])
    assert [case["layout"] for case in document["cases"]] == ["channels first", "channels last"]
    assert document["summary"]["copy, GB/s"] > 0


@pytest.mark.usefixtures("brief")
def test_figures_and_chart_are_written_into_a_folder(tmp_path):
    code, stdout, stderr = run("bench --out new/folder --json")
    assert code == 0
    assert stderr.strip() == "Chart: new/folder/benchmark.html"
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == [f"benchmark.{kind}" for kind in ("html", "json", "png", "svg")]
    kept = json.loads(Path("new/folder/benchmark.json").read_text())
    assert kept == json.loads(stdout)


@pytest.mark.usefixtures("brief")
def test_a_folder_that_cannot_be_written_is_refused_after_the_figures_are_printed(tmp_path):
    (tmp_path / "file").touch()
    code, stdout, stderr = run("bench --out file/folder")
    assert code == 2
    assert "times faster" in stdout
    assert stderr.startswith("Error: ")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            ValueError("torch.compile fails on this machine"),
            2,
            "Error: torch.compile fails on this",
        ),
        (
            ArithmeticError("3 values differ"),
            1,
            "Error: bnkit computes something other than torch: 3",
        ),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_sentence(monkeypatch, error, code, message):
    def failing(*_arguments, **_options):
        raise error

    monkeypatch.setattr(benchmark, "bench", failing)
    found, stdout, stderr = run("bench --quick")
    assert (found, stdout) == (code, "")
    assert stderr.startswith(message)
    assert len(stderr.splitlines()) == 1


# bnkit warmup


def test_where_the_core_lies_is_printed(monkeypatch):
    monkeypatch.setattr(build, "build", lambda **_: Core(Path("some/core.so"), built=True))
    code, stdout, _ = run("warmup")
    assert (code, stdout) == (0, "The core was built and lies in some/core.so\n")
    assert json.loads(run("warmup --json")[1])["path"] == "some/core.so"


def test_where_it_cannot_be_built_the_exit_code_and_a_sentence_say_so(monkeypatch):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    code, stdout, _ = run("warmup")
    assert code == 1
    assert "There is no compiled core: no C++ compiler was found: install one (as in" in stdout
