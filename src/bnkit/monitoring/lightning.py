"""`lightning_callback`: the Monitor as a callback of Lightning's Trainer."""

import importlib
from typing import Any

from torch import nn

from bnkit.monitoring.recorder import Recorder, Writer


def lightning_callback(*, every: int = 100, writer: Writer | None = None) -> Any:
    """Return a callback for lightning.Trainer(callbacks=[...]), which records every `every` steps.

    A step is a training batch, counted from 0 in each fit. `callback.monitor` is, from the start
    of a fit on, what has `records`, `non_finite`, `to_json` and `str()` of a `Monitor`. Without a
    `writer` the numbers go to the loggers of the Trainer.

    Raises ModuleNotFoundError where neither lightning nor pytorch_lightning is installed; errors of
    a `Monitor` come when the fit starts.
    """
    base = _lightning().Callback

    class BatchNormMonitor(base):  # type: ignore[misc, valid-type]
        """Tells a recorder of the Trainer's steps."""

        monitor: Recorder | None = None

        def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
            to = _Loggers(trainer.loggers) if writer is None else writer
            self.monitor = Recorder(pl_module, every=every, writer=to)

        def on_train_batch_start(self, *_of_batch: Any) -> None:
            self._recorder.begin_step()

        def on_train_batch_end(self, *_of_batch: Any) -> None:
            self._recorder.end_forward()

        def on_fit_end(self, *_of_fit: Any) -> None:
            self._recorder.close()

        def on_exception(self, *_of_fit: Any) -> None:
            if self.monitor is not None:
                self.monitor.close()

        @property
        def _recorder(self) -> Recorder:
            assert self.monitor is not None
            return self.monitor

    return BatchNormMonitor()


class _Loggers:
    """Lightning's loggers as a writer."""

    def __init__(self, loggers: list[Any]) -> None:
        self._loggers = loggers

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        for logger in self._loggers:
            logger.log_metrics({tag: scalar_value}, step=global_step)


def _lightning() -> Any:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise  # it is there, and something that it needs is not
    raise ModuleNotFoundError(
        "Lightning is not installed: pip install lightning, or use bnkit.Monitor(model) in a "
        "training loop of your own"
    )
