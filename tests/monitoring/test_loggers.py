"""The recipes of docs/loggers.md with the real packages, offline; each is skipped where missing."""

import csv
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from bnkit.monitoring import Monitor

PAGE = (Path(__file__).parents[2] / "docs" / "loggers.md").read_text()
STEPS, EVERY = 5, 2
RECORDED = [0, 2, 4]


def recipe(title):
    """Return the program under a title of the page."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.search(r"```py\n(.*?)```", section, re.DOTALL)[1]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a recipe with a small network in an empty folder; return its Monitor and all names."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())

    def train(model):
        for _ in range(STEPS):
            model(torch.randn(8, 4)).sum().backward()

    def execute(title):
        names = {"model": model, "train": train, "every": EVERY}
        exec(recipe(title), names)
        return names["monitor"], names

    return execute


def numbers_of(monitor):
    assert sorted({record.step for record in monitor.records}) == RECORDED
    return monitor.records[-1]


def test_csv(run):
    record = numbers_of(run("CSV")[0])
    with Path("batch_norms.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["step"]) for line in lines] == RECORDED
    assert float(lines[-1]["output_50/1"]) == pytest.approx(record.output[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:google")
def test_tensorboard(run):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no TensorBoard"
    )
    record = numbers_of(run("TensorBoard")[0])
    accumulator = events.EventAccumulator("runs/batch-norms")
    accumulator.Reload()
    written = accumulator.Scalars("output_50/1")
    assert [event.step for event in written] == RECORDED
    assert written[-1].value == pytest.approx(record.output[1])


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases(run, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setitem(os.environ, "WANDB_MODE", "offline")
    monkeypatch.setitem(os.environ, "WANDB_SILENT", "true")
    monitor, names = run("Weights & Biases")
    record = numbers_of(monitor)
    summary = names["run"].summary
    assert summary["output_50/1"] == pytest.approx(record.output[1])
    assert summary["_step"] == RECORDED[-1]
    assert list(Path("wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.filterwarnings("ignore")
def test_mlflow(run, monkeypatch):
    monkeypatch.setitem(os.environ, "MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monitor, names = run("MLflow")
    record = numbers_of(monitor)
    client = mlflow.MlflowClient()
    history = client.get_metric_history(names["run"].info.run_id, "output_50/1")
    assert [metric.step for metric in history] == RECORDED
    assert history[-1].value == pytest.approx(record.output[1])


@pytest.mark.filterwarnings("ignore")
def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed, which the Trainer needs")

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))

        def forward(self, x, labels):
            logits = self.layers(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = [{"x": torch.randn(4), "labels": n % 2} for n in range(24)]
    logged = []
    callback = Monitor.transformers_callback(every=2, writer=lambda _, step: logged.append(step))
    settings = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    model = Network()
    trainer = transformers.Trainer(model, settings, train_dataset=rows, callbacks=[callback])
    trainer.train()
    assert [record.step for record in callback.monitor.records] == [0, 2, 4]
    assert callback.monitor.records[0].layer == "layers.1"
    assert logged == [0, 2, 4]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_without_transformers_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="transformers is not installed: pip install"):
        Monitor.transformers_callback()
