"""The command line as people and scripts meet it: words, files, exit codes, interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bnkit.cli import app
from bnkit.lab.records import TrialResult
from bnkit.lab.settings import Settings

CODE = """
import torch
from torch import nn
x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)); y = x[:, :3].argmax(1)
def build(): return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
def narrow(): return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
def linear(): return nn.Linear(6, 3)
def flat(): return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Flatten(0))
def nothing(): return None
def broken(): raise RuntimeError("no weights")
def loaders(): return [(x[:20], y[:20]), (x[20:40], y[20:40])], [(x[40:], y[40:])]
def one_thing(): return [(x, y)]
def no_training(): return [], [(x, y)]
def no_test(): return [(x, y)], []
def used_up(): return iter([(x, y)]), [(x, y)]
def out_of_range(): return [(x, y + 1)], [(x, y)]
def one_hot(): return [(x, torch.eye(3)[y])], [(x, y)]
def thirty_two(): return [(x, y.int())], [(x, y)]
def alone(): return [(x[:1], y[:1])], [(x, y)]
number = 3
"""
TINY = "--steps 4 --evaluate-every 2 --seeds 1 --learning-rate 0.1".split()
OWN = ["--model", "own:build", "--data", "own:loaders", *TINY]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that holds own.py and is the current one."""
    (tmp_path / "own.py").write_text(CODE)
    (tmp_path / "failing.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("own", None)


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def files_below(folder):
    return {path.name for path in folder.rglob("*") if path.suffix != ".pyc"} - {"__pycache__"}


WRONG = {
    "--network dlolgy": "unknown network 'dlolgy': did you mean 'dlology'",
    "--network dlology": "'dlology' needs images of at least 18×18 pixels and got 8×8",
    "--data digit": "unknown data set 'digit': did you mean 'digits'",
    "--data mnist --data-dir absent": "the data folder .*absent does not exist",
    "--activation rleu": "unknown activation 'rleu': did you mean 'relu'",
    "--optimizer sdg": "unknown optimizer 'sdg': did you mean 'sgd'",
    "--loss entropy": "unknown loss 'entropy'",
    "--init normal:-1": "'normal:-1' needs a positive, finite standard deviation",
    "--learning-rate 0": "`learning_rates` holds 0.0: give a positive, finite number",
    "--learning-rate nan": "`learning_rates` holds nan",
    "--learning-rate 1,x": "'1,x': give numbers with commas between them",
    "--hidden 10,0": "`hidden` holds 0|`hidden` is 0|`hidden` is .*0",
    "--steps 0": "`steps` is 0: give a whole number of at least 1",
    "--seeds -1": "`seeds` is -1",
    "--batch-size 5000": "5000.*1437|1437.*5000|5000",
    "--eps -1": "`eps` holds -1.0",
    "--momentum 1.5": "`momentum` is 1.5: give a number above 0 and up to 1",
    "--target 90": "`target` is 90.0: give a number above 0 and up to 1",
    "--placement inside": "inside",
    "--jobs 0": "Invalid value for '--jobs': Input should be greater than or equal to 1",
    "--out own.py": "the folder own.py/trials cannot be written",
    "--model own:build --activation relu": "--activation is for the named networks",
    "--model own --data own:loaders": "'own' is no reference: write it as package.module:function",
    "--model own:bild --data own:loaders": "no 'bild'; did you mean 'build'",
    "--model own:number --data own:loaders": "'own:number' is a int: it must be a function",
    "--model absent:build --data own:loaders": "module 'absent' cannot be imported .*No module",
    "--model failing:build --data own:loaders": "ZeroDivisionError: division by zero",
    "--model own:broken --data own:loaders": r"`build` \(broken\) fails: RuntimeError: no weights",
    "--model own:nothing --data own:loaders": "`build` returned a NoneType",
    "--model own:linear --data own:loaders": "nothing in this model can be normalised",
    "--model own:narrow --data own:loaders": r"in layer '0' \(Linear\): RuntimeError: mat1",
    "--model own:flat --data own:loaders": r"must return scores of shape \(mini-batch, classes\)",
    "--model own:build --data own:one_thing": r"`data` returned a list: .*\(train, test\)",
    "--model own:build --data own:no_training": "the training batches of `data` are empty",
    "--model own:build --data own:no_test": "the test batches of `data` are empty",
    "--model own:build --data own:out_of_range": "a target .* is 3 and the network has 3 outputs",
    "--model own:build --data own:one_hot": "are torch.float32 of shape .*: they must be class",
    "--model own:build --data own:thirty_two": "are torch.int32",
    "--model own:build --data own:alone": "has 1 value per channel",
    "--network mlp --data own:loaders": "a named network needs a named data set",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_use_gets_one_sentence_exit_code_2_and_no_files(options, folder):
    before = files_below(folder)
    result = run("compare", *options.split())
    assert result.exit_code == 2
    assert result.stdout == ""
    words = " ".join(result.stderr.replace("│", " ").split())
    assert pytest.raises(AssertionError, match=WRONG[options]).matches(AssertionError(words)), words
    assert "Traceback" not in result.stderr
    assert files_below(folder) == before


def test_a_comparison_prints_a_table_a_verdict_and_the_path_of_its_report(folder):
    result = run("compare", *OWN)
    assert result.exit_code == 0, result.output
    assert "plain → batch norm" in result.stdout
    assert "Batch norm" in result.stdout
    assert "Report: bnkit-report/report.html" in result.stderr
    report = folder / "bnkit-report"
    assert {path.name for path in report.iterdir()} >= {"report.html", "results.json", "charts"}
    assert len(list((report / "trials").glob("*.json"))) == 2


def test_json_goes_to_stdout_alone_and_is_strict(folder):
    result = run("compare", *OWN, "--json", "--out", "elsewhere")
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert {trial["outcome"] for trial in found["trials"]} == {"finished"}
    assert found["settings"]["steps"] == 4
    assert (folder / "elsewhere" / "report.html").exists()


@pytest.mark.usefixtures("folder")
def test_report_only_runs_nothing_and_says_what_is_missing():
    result = run("compare", *OWN, "--report-only")
    assert result.exit_code == 0
    assert "2 runs not run" in result.stdout
    assert "no finished pairs" in result.stdout


@pytest.mark.usefixtures("folder")
def test_failed_runs_are_named_and_change_the_exit_code():
    result = run("compare", *OWN, "--data", "own:used_up")
    assert result.exit_code == 1
    assert (
        "2 runs failed: ValueError: the training batches are empty, or an iterator" in result.stdout
    )


@pytest.mark.parametrize("command", ["compare", "add"])
def test_help_names_every_option(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Exit codes" in result.stdout
    assert ("--learning-rate" if command == "compare" else "--example") in result.stdout


def test_every_setting_has_an_option():
    words = run("compare", "--help").stdout.replace("…", "")
    names = {"learning_rates": "learning-rate", "activations": "activation"}
    for setting in Settings.__dataclass_fields__:
        option = "--" + names.get(setting, setting).replace("_", "-")
        assert option[:18] in words, option


@pytest.mark.usefixtures("folder")
def test_add_prints_the_plan():
    result = run("add", "own:build", "--example", "4,6")
    assert result.exit_code == 0
    assert "normalise 8 features, drop bias" in result.stdout
    plan = json.loads(run("add", "own:build", "--example", "4,6", "--json").stdout)
    assert [edit["layer"] for edit in plan["edits"]] == ["0"]
    assert [left["layer"] for left in plan["left_alone"]] == ["2"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["own:build", "--example", "4,7"], r"in layer '0' (Linear)"),
        (["own:build", "--example", "4,-6"], "give sizes of at least 1"),
        (["own:broken", "--example", "4,6"], "`model` (broken) fails: RuntimeError: no weights"),
        (["own:nothing", "--example", "4,6"], "`model` is a NoneType: pass a torch.nn.Module"),
    ],
)
def test_add_refuses_wrong_use_in_one_sentence(arguments, message):
    result = run("add", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


# Interruptions: whole programs, killed in different ways

LONG = ["--model", "own:build", "--data", "own:loaders"]
LONG += "--steps 3000 --evaluate-every 300 --learning-rate 0.1,1 --seeds 2 --jobs 2".split()


def start(folder):
    program = [sys.executable, "-c", "from bnkit.cli import main; main()", "compare", *LONG]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        program,
        cwd=folder,
        env=environment,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def members(group):
    """Return the processes of a process group that are still running."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            found.append(status.parent.name)
    return found


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def results(folder):
    kept = (folder / "bnkit-report" / "trials").glob("*.json")
    return {path.stem: TrialResult.from_json(json.loads(path.read_text())) for path in kept}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_an_interruption_ends_the_workers_keeps_what_is_done_and_says_how_to_go_on(how, folder):
    process = start(folder)
    assert wait_for(lambda: len(results(folder)) >= 2, 60)
    if how == "Ctrl-C":  # a terminal sends it to the whole group
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    # Two seconds on a quiet machine, which one that runs tests side by side is not.
    assert wait_for(lambda: members(process.pid) == [], 10)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "This goes on from here:" in err
    assert "as built" in out
    assert "runs not run" in out


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_a_killed_comparison_goes_on_and_ends_with_the_numbers_of_an_undisturbed_one(folder):
    for enough in (1, 4):
        process = start(folder)
        assert wait_for(lambda: len(results(folder)) >= enough, 60)  # noqa: B023  called at once
        os.kill(process.pid, signal.SIGKILL)
        assert wait_for(lambda: members(process.pid) == [], 10)  # noqa: B023  as above
        process.communicate()
    out, err = start(folder).communicate()
    assert "8/8" in err, out
    resumed = results(folder)
    for path in (folder / "bnkit-report" / "trials").iterdir():
        path.unlink()
    start(folder).communicate()
    undisturbed = results(folder)
    assert len(resumed) == 8
    assert {k: replace(t, seconds=0) for k, t in resumed.items()} == {
        k: replace(t, seconds=0) for k, t in undisturbed.items()
    }
