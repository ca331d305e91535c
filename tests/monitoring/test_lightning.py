import importlib
import math
import warnings

import pytest
import torch
from torch import nn

from bnkit.monitoring import Monitor
from bnkit.recalibration import recalibrate

pytest.importorskip("lightning", reason="lightning is not installed")
# Lightning looks for packages in a way that Python has deprecated, among others.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = importlib.import_module("lightning.pytorch")

pytestmark = [
    # On the machine that trains: few workers, no validation, deprecated calls of torch's.
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
]


class Fitted(lightning.LightningModule):
    """Calls its network, not itself, as most do."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.fails_at = math.inf

    def training_step(self, batch, index):
        if index >= self.fails_at:
            raise ArithmeticError
        return self.network(batch).square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Logger(lightning.loggers.logger.DummyLogger):
    def __init__(self):
        super().__init__()
        self.metrics = []

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, metrics))


def fit(model, callback, folder, logger=False):
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(model, torch.utils.data.DataLoader(torch.randn(24, 4), batch_size=8))


def test_a_fit_is_recorded_and_logged(tmp_path):
    callback, logger = Monitor.lightning_callback(every=2), Logger()
    fit(Fitted(), callback, tmp_path, logger)
    records = callback.monitor.records
    assert [(record.step, record.layer) for record in records] == [
        (0, "network.1"),
        (2, "network.1"),
    ]
    assert all(record.output_gradient > 0 for record in records)
    # One dict a step, however many numbers there are
    assert [step for step, _ in logger.metrics] == [0, 2]
    _, numbers = logger.metrics[1]
    assert numbers["lag/network.1"] == records[1].lag
    assert len(numbers) == len([1 for _, value in records[1].scalars() if not math.isnan(value)])


def test_a_module_without_a_forward_is_refused_with_the_part_to_pass():
    with pytest.raises(TypeError, match=r"is a Fitted, which has no forward of its own: pass the "
                       r"part that computes, as model\.network"):  # fmt: skip
        recalibrate(Fitted(), [torch.randn(8, 4)])


def test_hooks_are_gone_after_a_fit_that_fails(tmp_path):
    model, callback = Fitted(), Monitor.lightning_callback(every=1)
    model.fails_at = 1
    with pytest.raises(ArithmeticError):
        fit(model, callback, tmp_path)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert callback.monitor.records[0].step == 0


def test_without_lightning_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(importlib.sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(importlib.sys.modules, "pytorch_lightning", None)
    with pytest.raises(ModuleNotFoundError, match="Lightning is not installed: pip install"):
        Monitor.lightning_callback()
