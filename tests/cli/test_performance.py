import json
from pathlib import Path

import pytest

from bnkit.benchmarking import CASES, QUICK, Case, bench, benchmark
from bnkit.kernels import warming
from bnkit.kernels.warming import Warmed, Warmth
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


@pytest.fixture
def warmed(monkeypatch):
    """Compile nothing; return the dtypes that were asked for, and set the folder."""

    def keep_in(folder):
        asked = []

        def warm(dtypes, *, progress):
            asked.extend(map(str, progress(dtypes)))
            return Warmth((Warmed("float32", 4.25, 4, 4),), folder)

        monkeypatch.setattr(warming, "warm", warm)
        return asked

    return keep_in


def test_seconds_and_folder_are_printed(warmed):
    asked = warmed(Path("some/cache"))
    code, stdout, _ = run("warmup --dtype float32,bfloat16")
    assert code == 0
    assert asked == ["torch.float32", "torch.bfloat16"]
    assert " float32   4.2       4 of 4" in stdout
    assert "They are kept in some/cache" in stdout
    assert json.loads(run("warmup --json")[1])["folder"] == "some/cache"


def test_all_dtypes_are_compiled_unless_some_are_chosen(warmed):
    asked = warmed(Path("some/cache"))
    assert run("warmup")[0] == 0
    assert asked == ["torch.float32", "torch.bfloat16", "torch.float64"]


def test_where_no_folder_can_be_written_the_exit_code_says_so(warmed):
    warmed(None)
    code, stdout, _ = run("warmup")
    assert code == 1
    assert "They cannot be kept" in stdout


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float33", "unknown dtype 'float33': did you mean 'float32'"),
        ("float16", "unknown dtype 'float16': did you mean"),
        ("''", "`dtypes` is empty: pass at least one"),
    ],
)
def test_a_dtype_without_kernels_is_refused(dtype, message):
    code, stdout, stderr = run(f"warmup --dtype {dtype}")
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert len(stderr.splitlines()) == 1
