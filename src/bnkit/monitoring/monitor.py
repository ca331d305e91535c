"""`Monitor`: a few lines in a training loop, by plain hooks."""

import importlib
from functools import partial
from types import TracebackType
from typing import Any, Self

from torch import nn

from bnkit.monitoring.recorder import Recorder, Writer
from bnkit.observation import LongBlock, counting_training_steps, watching_layers


class Monitor(Recorder):
    """Records what the batch norms of `model` do in every `every`-th training step.

    A training step is a forward of `model` in training mode; the first one is step 0, and is
    recorded. `records` is a tuple with a `Record` for each layer and recorded step: percentiles of
    its input and output as in figure 1 of Ioffe and Szegedy 2015 and how far they drift, how far
    the running statistics lag, which channels are dead, how large the gradients are. `non_finite`
    tells of NaN and infinities, also between two records. `writer` is anything with
    add_scalar(tag, value, step), as TensorBoard's SummaryWriter, or a function of all numbers of a
    step, a dict by their tags, and the step, as other loggers take them; it gets the numbers once
    the step is over, the last ones from `close`. `str()` gives a table of the last step,
    `to_json()` all that is kept: the last 50,000 records, in whole steps, and the first 10,000
    events, some 35 MB; a writer gets everything.

    Training is the same to the bit with and without it, except that what torch.compile compiled
    runs as written in the steps that are recorded. `model` may be wrapped, by
    DistributedDataParallel (each process records its own mini-batches) or torch.compile; copies and
    pickles of it know nothing of the Monitor. With a gradient scaler, the recorded gradients are
    scaled.

    Raises ValueError for a model without batch norm and for an `every` that is not an integer ≥ 1,
    TypeError for what is not a module or a writer; in training RuntimeError where torch.compile or
    torch.func hide the layers.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU())
    >>> with Monitor(model, every=2) as monitor:
    ...     for _ in range(3):
    ...         model(torch.randn(8, 2)).sum().backward()
    >>> [(record.step, record.layer) for record in monitor.records]
    [(0, '1'), (2, '1')]
    """

    def __init__(self, model: nn.Module, *, every: int = 100, writer: Writer | None = None) -> None:
        super().__init__(model, every=every, writer=writer)
        self._hooks, self._of_step = LongBlock(), LongBlock()
        self._model = model
        self._hooks.enter(counting_training_steps(model, self.begin_step))

    @staticmethod
    def lightning_callback(*, every: int = 100, writer: Writer | None = None) -> Any:
        """Return a callback for Lightning's Trainer, in place of a Monitor.

        It records the module that is fitted, every `every`-th training batch, counted from 0 in
        each fit, and writes to the Trainer's loggers where no `writer` is given. From the start of
        the fit on its attribute `monitor` has `records`, `non_finite`, `to_json()` and `str()`.
        Raises ModuleNotFoundError where neither lightning nor pytorch_lightning is installed;
        errors of a Monitor come when the fit starts.
        """
        return _lightning_callback(every, writer)

    @staticmethod
    def transformers_callback(*, every: int = 100, writer: Writer | None = None) -> Any:
        """Return a callback for the Trainer of Hugging Face's transformers, in place of a Monitor.

        It records the model that is trained, every `every`-th forward in training mode: with
        gradient accumulation, a step of the Trainer has several. From the start of the training on
        its attribute `monitor` is the Monitor; it is closed at the end. Raises ModuleNotFoundError
        where transformers is not installed; errors of a Monitor come when the training starts.
        """
        return _transformers_callback(every, writer)

    def close(self) -> None:
        """Take all hooks away, and write what is not written yet; `records` stay.

        All hooks go, even if Ctrl-C comes in between.
        """
        try:
            self._let_go()
        finally:
            self._let_go()  # again: it goes on where Ctrl-C stopped the first
        super().close()

    def _let_go(self) -> None:
        self._hooks.close()
        self._of_step.close()
        if self._step is not None:
            self._step.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def record(self, number: int) -> None:
        """Look at the step `number`, which begins, until its forward has ended."""
        super().record(number)
        self._of_step.close()  # of a forward that called itself
        self._of_step.enter(watching_layers({"": self._model}, after=self._end))

    def _end(self, *_of_call: Any) -> None:
        self._of_step.close()
        self.end_forward()


def _lightning_callback(every: int, writer: Writer | None) -> Any:
    base = _lightning().Callback

    class BatchNormMonitor(base):  # type: ignore[misc, valid-type]
        """Tells a recorder of the Trainer's steps."""

        monitor: Any = None  # a Recorder, from the start of the fit on

        def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
            to = partial(_log, trainer.loggers) if writer is None else writer
            self.monitor = Recorder(pl_module, every=every, writer=to)

        def on_train_batch_start(self, *_of_batch: Any) -> None:
            self.monitor.begin_step()

        def on_train_batch_end(self, *_of_batch: Any) -> None:
            self.monitor.end_forward()

        def on_fit_end(self, *_of_fit: Any) -> None:
            if self.monitor is not None:
                self.monitor.close()

        on_exception = on_fit_end

    return BatchNormMonitor()


def _log(loggers: list[Any], numbers: dict[str, float], step: int) -> None:
    for logger in loggers:
        logger.log_metrics(numbers, step=step)


def _transformers_callback(every: int, writer: Writer | None) -> Any:
    try:
        base = importlib.import_module("transformers").TrainerCallback
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ModuleNotFoundError(
            "transformers is not installed: pip install transformers, or use bnkit.Monitor(model) "
            "in a training loop of your own"
        ) from None

    class BatchNormMonitor(base):  # type: ignore[misc, valid-type]
        """Watches the model from the start of a training to its end."""

        monitor: Monitor | None = None

        def on_train_begin(self, *_of_training: Any, model: nn.Module, **_more: Any) -> None:
            self.close()  # of a training that failed
            self.monitor = Monitor(model, every=every, writer=writer)

        def on_train_end(self, *_of_training: Any, **_more: Any) -> None:
            self.close()

        def close(self) -> None:
            """Take the hooks away, which a training that fails leaves."""
            if self.monitor is not None:
                self.monitor.close()

    return BatchNormMonitor()


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
