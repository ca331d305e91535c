"""The numbers of trials while they run: what a trial tells, and what a logger and a bar get."""

import errno
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import users
from bnkit import compare
from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.metrics import ACCURACY
from bnkit.experiments.results import Curve, TrialResult
from bnkit.experiments.settings import Settings
from bnkit.experiments.trial_logs import TrialLogs, telling

SMALL = {"learning_rates": [0.1], "seeds": 1, "steps": 12, "evaluate_every": 4}


class Trial:
    key, name = "a1", "batch norm, as built, learning rate 0.1, width=8, seed 0"


def ended(*, steps=(), loss=(), metric=()):
    curve = Curve(steps, loss, metric)
    return TrialResult("a1", "batch norm", 0.1, "width=8", 0, "finished", curve=curve)


@pytest.fixture
def got():
    return []


@pytest.fixture
def logs(tmp_path, got):
    def log(numbers, step):
        got.append((step, numbers))

    found = TrialLogs(tmp_path / "running", ACCURACY, log=log, boards=tmp_path / "tensorboard")
    found.add([Trial()])
    return found


TAG = "batch-norm/learning-rate-0.1/width-8/seed-0"


def test_what_a_trial_tells_is_handed_on_once_and_noted(logs, got):
    assert logs.look() == ""
    with telling(logs.folder, "a1") as tell:
        tell(4, {"loss": 0.5, "accuracy": 0.25})
        assert logs.look() == f"{Trial.name}: step 4, accuracy 25.0%"
        tell(8, {"loss": None, "accuracy": 0.5})
        logs.look()
        assert logs.look() == f"{Trial.name}: step 8, accuracy 50.0%"
    assert got == [
        (4, {f"loss/{TAG}": 0.5, f"accuracy/{TAG}": 0.25}),
        (8, {f"accuracy/{TAG}": 0.5}),
    ]


def test_the_result_brings_what_was_not_told(logs, got):
    with telling(logs.folder, "a1") as tell:
        tell(4, {"loss": 0.5, "accuracy": 0.25, "own": 3.0})
    logs.end(ended(steps=(4, 8), loss=(0.5, 0.25), metric=(0.25, None)))
    assert [step for step, _ in got] == [4, 8]
    assert got[0][1][f"own/{TAG}"] == 3
    assert got[1][1] == {f"loss/{TAG}": 0.25}
    logs.close()
    assert not logs.folder.exists()


def test_a_line_that_is_half_written_waits_and_a_trial_that_begins_again_is_told_anew(logs, got):
    file = logs.folder / "a1.jsonl"
    file.write_text('{"step": 4, "loss": 0.5}\n{"step": 8, "lo')
    logs.look()
    assert [step for step, _ in got] == [4]
    file.write_text("")
    logs.look()
    file.write_text('{"step": 4, "loss": 0.75}\n')
    logs.look()
    assert [numbers[f"loss/{TAG}"] for _, numbers in got] == [0.5, 0.75]


def test_a_line_that_a_full_disk_has_cut_costs_itself_alone(logs, got):
    file = logs.folder / "a1.jsonl"
    file.write_text('{"step": 4, "loss": 0.5}\n{"step": 8, "lo{"step": 12, "loss": 0.25}\n')
    logs.look()
    logs.end(ended(steps=(4, 8, 12), loss=(0.5, 0.375, 0.25), metric=(None, None, None)))
    assert [(step, numbers[f"loss/{TAG}"]) for step, numbers in got] == [
        (4, 0.5),
        (8, 0.375),
        (12, 0.25),
    ]


def test_a_full_disk_costs_the_news_and_not_the_trial(logs, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr(Path, "unlink", full)
    with telling(logs.folder, "a1") as tell:
        tell(4, {"loss": 0.5})
    monkeypatch.undo()
    assert [*logs.folder.iterdir()] == []


def test_trials_of_other_sweeps_in_the_same_folder_are_left_alone(logs, got):
    with telling(logs.folder, "other") as tell:
        tell(4, {"loss": 0.5})
    assert (logs.look(), got) == ("", [])
    logs.end(replace(ended(), key="other"))
    logs.close()
    assert (logs.folder / "other.jsonl").exists()


def test_where_the_folder_is_not_nothing_is_told(tmp_path):
    for folder in (None, tmp_path / "of another machine"):
        with telling(folder, "a1") as tell:
            tell(4, {"loss": 0.5})
    assert [*tmp_path.iterdir()] == []


def test_a_logger_that_fails_is_warned_of_once_and_the_trials_go_on(tmp_path):
    def log(_numbers, _step):
        raise ConnectionError("no network")

    with pytest.warns(UserWarning, match="no network.*it gets nothing more") as warned:
        found = compare(users.build, users.loaders, log=log, progress=False, out=tmp_path, **SMALL)
    assert len(warned) == 1
    assert [trial.outcome for trial in found.trials] == ["finished"] * 2


@pytest.mark.parametrize(
    ("log", "error", "message"),
    [
        ("wandb", ValueError, "`log` is 'wandb': pass 'tensorboard', or a writer of your own"),
        (7, TypeError, "`log` is a int, which has no add_scalar"),
        ("tensorboard", ValueError, "`log` is 'tensorboard', which writes beside the results: pas"),
    ],
)
def test_what_is_not_a_logger_is_refused(log, error, message):
    with pytest.raises(error) as raised:
        compare(users.build, users.loaders, log=log, progress=False, **SMALL)
    assert str(raised.value).startswith(message)


def test_logged_trials_have_the_keys_and_numbers_of_others(tmp_path):
    planned = plan_comparison(users.build, users.loaders, settings=Settings(**SMALL), out=tmp_path)
    without, _ = planned.trials
    (tmp_path / "told").mkdir()
    told = replace(without, told_in=tmp_path / "told")
    assert replace(told.run(), seconds=0) == replace(without.run(), seconds=0)
    assert len((tmp_path / "told" / f"{told.key}.jsonl").read_text().splitlines()) == 3


def test_tensorboard_has_a_folder_for_each_trial(tmp_path):
    event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {**SMALL, "learning_rates": [0.1, 0.5]}
    compare(users.build, users.loaders, log="tensorboard", out=tmp_path, progress=False, **options)
    folder = tmp_path / "tensorboard" / "batch-norm" / "learning-rate-0.5" / "seed-0"
    read = event_files.EventAccumulator(str(folder)).Reload()
    assert [event.step for event in read.Scalars("accuracy")] == [4, 8, 12]
    assert [event.step for event in read.Scalars("loss")] == [4, 8, 12]
    assert len([*tmp_path.rglob("events.out.tfevents.*")]) == 4
    assert not (tmp_path / "trials" / "running").exists()


@pytest.mark.usefixtures("importable_tests")
def test_numbers_come_while_the_trial_runs(tmp_path):
    def build():
        return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))

    def train(model, trial):
        for step in (1, 2):
            trial.report(step, score=model(torch.ones(4, 2)).sum(), beside=7)
            began = time.monotonic()
            while not (trial.rehearsal or (tmp_path / "seen").exists()):
                assert time.monotonic() - began < 100
                time.sleep(0.05)
            if trial.rehearsal:
                return

    def log(numbers, _step):
        (tmp_path / "seen").touch()
        got.append(numbers)

    got = []
    found = compare(
        build, train=train, metric="score", higher_is_better=True, learning_rates=[0.1], seeds=1,
        jobs=1, log=log, progress=False, out=tmp_path,
    )  # fmt: skip
    assert [trial.outcome for trial in found.trials] == ["finished"] * 2
    assert got[0].keys() == {
        "score/plain/learning-rate-0.1/seed-0",
        "beside/plain/learning-rate-0.1/seed-0",
    }
    assert len(got) == 4


# The recipes of the page with the real packages, offline; each is skipped where it is missing

PAGE = (Path(__file__).parents[2] / "docs" / "loggers.md").read_text()
CURVE = "accuracy/batch-norm/learning-rate-0.1/seed-0"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Run the recipe of compare in which a word stands, as users do; return run and comparison."""
    _, _, section = PAGE.partition("## What compare writes\n")
    programs = re.findall(r"```py\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "bnkit.compare", partial(compare, **SMALL, out=tmp_path, progress=False, jobs=1)
    )

    def execute(word):
        (program,) = [text for text in programs if f"import {word}" in text]
        assert len(program.splitlines()) <= 10
        names = {"build": users.build, "data": users.loaders}
        exec(program, names)
        return names["run"], names["found"]

    return execute


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases(recipe, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run, found = recipe("wandb")
    (file,) = Path("wandb").glob(f"offline-run-*/run-{run.id}.wandb")
    records = file.read_bytes()
    for trial, side in zip(found.trials, ("plain", "batch-norm"), strict=True):
        tag = CURVE.replace("batch-norm", side).encode()
        # A record is a protocol buffer: the tag, a marker of field 16, a length, and the number.
        written = re.findall(re.escape(tag) + rb"\x82\x01.([\d.]+)", records, re.DOTALL)
        assert {*map(float, written)} == {*trial.curve.metric}


@pytest.mark.filterwarnings("ignore")
def test_mlflow(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # where no data base is installed
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    run, found = recipe("mlflow")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, CURVE)
    assert [metric.step for metric in history] == [4, 8, 12]
    assert tuple(metric.value for metric in history) == found.trials[1].curve.metric
