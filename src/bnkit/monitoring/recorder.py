"""`Recorder`: counts training steps, records some of them, and keeps what came out."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from bnkit.kernels.choice import is_transformed
from bnkit.monitoring.events import Events
from bnkit.monitoring.record import NonFinite, Record, plain, table_of
from bnkit.monitoring.step import Step
from bnkit.monitoring.summary import Array
from bnkit.norms import batch_norms, unwrapped


class Writer(Protocol):
    """What takes scalars, such as torch.utils.tensorboard.SummaryWriter."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Take a number."""


class Recorder:
    """What the loops of all kinds share: they tell it when a training step begins and ends."""

    def __init__(self, model: nn.Module, *, every: int, writer: Writer | None) -> None:
        self.every = _checked_every(every)
        self.steps = 0
        self._writer = _checked_writer(writer)
        self._layers = _batch_norms(model)
        self._events = Events(self._layers)
        self._records: list[Record] = []
        self._percentiles = dict[str, Array]()
        self._step: Step | None = None
        self._written = 0  # events

    def begin_step(self) -> None:
        """Count a training step, and look at it if its turn has come."""
        number = self.steps
        self.steps = number + 1
        due = number % self.every == 0
        if self._step is not None and (due or self._step.is_complete):
            self._settle()
        if due:
            self.record(number)

    def record(self, number: int) -> None:
        """Look at the step `number`, which begins."""
        _refuse_transformations()
        self._step = Step(number, self._layers, self._percentiles)

    @property
    def is_looking(self) -> bool:
        """Whether the step that began last is recorded."""
        return self._step is not None and self._step.number == self.steps - 1

    def end_forward(self) -> None:
        """Look at no more layers in this step; gradients are still to come."""
        if self._step is not None and self.is_looking:
            self._step.end_forward()
            self._events.look(self._step.number, self._step.variances)

    def close(self) -> None:
        """End it: take away what was hooked in, and write what is not written yet."""
        if self._step is not None:
            self._settle()
        self._events.look(self.steps - 1, {})
        self._write([])

    @property
    def records(self) -> tuple[Record, ...]:
        """All records so far, layer by layer in the order in which they ran, step by step."""
        return (*self._records, *(() if self._step is None else self._step.records()))

    @property
    def non_finite(self) -> tuple[NonFinite, ...]:
        """NaN and infinities that reached a batch norm, also in steps that were not recorded."""
        return self._events.found()

    def to_json(self) -> dict[str, Any]:
        """Return all that was recorded as plain data; None stands for what is no number."""
        return {
            "every": self.every,
            "steps": self.steps,
            "records": [plain(record) for record in self.records],
            "non_finite": [plain(event) for event in self.non_finite],
        }

    def __str__(self) -> str:
        records = self.records
        if not records:
            return f"Nothing recorded yet: {len(self._layers)} batch norms, {self.steps} steps."
        last = records[-1].step
        idle = [repr(path) for path in self._layers if path not in {r.layer for r in records}]
        lines = [
            f"Step {last}, the last one recorded of {self.steps}: every {self.every} steps.",
            *([f"Never called: {', '.join(idle)}."] if idle else []),
            *map(str, self.non_finite),
        ]
        table = table_of([record for record in records if record.step == last])
        return "\n".join([table, "", *lines])

    def _settle(self) -> None:
        """Take over what the step has seen, and write it."""
        assert self._step is not None
        self._step.close()
        new = self._step.records()
        self._records += new
        self._percentiles |= self._step.percentiles
        self._step = None
        self._write(new)

    def _write(self, records: Sequence[Record]) -> None:
        if self._writer is None:
            return
        for record in records:
            for name, value in record.scalars():
                if not math.isnan(value):
                    self._writer.add_scalar(_tag(name, record.layer), value, record.step)
        events = self.non_finite
        for event in events[self._written :]:
            for name in ("batches", "channels"):
                tag = _tag(f"non_finite_{name}", event.layer)
                self._writer.add_scalar(tag, getattr(event, name), event.last)
        self._written = len(events)


def _tag(name: str, layer: str) -> str:
    """Return the tag of a curve: TensorBoard shows those with the same beginning together."""
    return f"{name}/{layer or 'model'}"


def _checked_every(every: int) -> int:
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(
            f"`every` is {every!r}: give a whole number of at least 1, such as 100 to record every "
            f"hundredth training step"
        )
    return every


def _checked_writer(writer: Writer | None) -> Writer | None:
    if writer is not None and not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(
            f"`writer` is a {type(writer).__name__}, which has no add_scalar(tag, value, step): "
            f"pass a torch.utils.tensorboard.SummaryWriter, or None to write nothing"
        )
    return writer


def _batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` is a {type(model).__name__}: pass the torch.nn.Module that trains"
        )
    layers = batch_norms(unwrapped(model)).layers
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no batch norm to look at: add them first, as with "
            f"bnkit.add(model, example), and give the model that trains"
        )
    return layers


def _refuse_transformations() -> None:
    if is_transformed():
        raise RuntimeError(
            "the model runs inside of a transformation of torch.func, where values cannot be read: "
            "close the Monitor, or call the model outside of it"
        )
