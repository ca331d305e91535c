"""`Recorder`: counts training steps, records some of them, and keeps what came out."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from bnkit.dataflow.tensors import tensors_in
from bnkit.files import plain
from bnkit.kernels.choice import is_transformed
from bnkit.monitoring.channels import Calls, is_fused, running_statistics
from bnkit.monitoring.records import Array, NonFinite, Record, descriptions, table_of
from bnkit.norms import batch_norms, unwrapped
from bnkit.notebooks import Shown
from bnkit.observation import LongBlock, running_eagerly, seeing_gradients, watching_layers
from bnkit.tables import frame_of

# What a Monitor keeps, some 35 MB of records; of longer trainings the last records, in whole steps,
# and the first events, which are nearer to the cause.
MOST_RECORDS, MOST_EVENTS = 50_000, 10_000

_GRADIENTS = ("weight", "bias", "output")


class ScalarWriter(Protocol):
    """What takes scalars, such as torch.utils.tensorboard.SummaryWriter."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Take a number."""


# Or a function that takes all numbers of a step, by their tags, and the step.
Writer = ScalarWriter | Callable[[dict[str, float], int], object]


class Recorder(Shown):
    """What the loops of all kinds share: they tell it when a training step begins and ends."""

    def __init__(self, model: nn.Module, *, every: int, writer: Writer | None) -> None:
        self.every = _checked_every(every)
        self.steps = 0
        self._write = None if writer is None else writing(writer)
        self._layers = _batch_norms(model)
        self._events = Events(self._layers)
        self._kept = deque[tuple[Record, ...]]()  # step by step
        self._number = 0  # of these records
        self._found: list[NonFinite] = []
        self._percentiles = dict[str, Array]()
        self._step: Step | None = None

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
        if is_transformed():
            raise RuntimeError(
                "the model runs inside a transformation of torch.func, where values cannot be "
                "read: close the Monitor, or call the model outside of it"
            )
        self._step = Step(number, self._layers, self._percentiles)

    def end_forward(self) -> None:
        """Look at no more layers in this step; gradients are still to come."""
        if self._step is not None and self._step.number == self.steps - 1:
            self._step.end_forward()
            self._events.look(self._step.number, self._step.variances)

    def close(self) -> None:
        """End it: take away what was hooked in, and write what is not written yet."""
        if self._step is not None:
            self._settle()
        self._events.look(self.steps - 1, {})
        self._take_events()

    @property
    def records(self) -> tuple[Record, ...]:
        """The records of the last steps, layer by layer in the order in which they ran.

        They are at most 50,000, or those of two steps where a step has more.
        """
        steps = [*self._kept, () if self._step is None else self._step.records()]
        return tuple(record for of_step in steps for record in of_step)

    @property
    def non_finite(self) -> tuple[NonFinite, ...]:
        """NaN and infinities that reached a batch norm, also in steps that were not recorded.

        They are the first 10,000 at most.
        """
        self._take_events()
        return tuple(self._found)

    def to_json(self) -> dict[str, Any]:
        """Return all that was recorded as plain data; None stands for NaN and infinities."""
        return {
            "every": self.every,
            "steps": self.steps,
            "records": [plain(asdict(record)) for record in self.records],
            "non_finite": [plain(asdict(event)) for event in self.non_finite],
        }

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row for each record; MissingExtraError without pandas."""
        return frame_of(
            {"step": each.step, "layer": each.layer, **dict(each.scalars())}
            for each in self.records
        )

    def __str__(self) -> str:
        records = self.records
        if not records:
            return f"Nothing recorded yet: {len(self._layers)} batch norms, {self.steps} steps."
        last = records[-1].step
        called = {record.layer for record in records}
        idle = [repr(path) for path in self._layers if path not in called]
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
        self._percentiles |= self._step.percentiles
        self._step = None
        self._keep(new)
        numbers = [
            (record.step, _tag(name, record.layer), value)
            for record in new
            for name, value in record.scalars()
            if not math.isnan(value)
        ]
        self._hand_on([*numbers, *self._new_events()])

    def _keep(self, new: tuple[Record, ...]) -> None:
        self._kept.append(new)
        self._number += len(new)
        while len(self._kept) > 2 and self._number > MOST_RECORDS:
            self._number -= len(self._kept.popleft())

    def _take_events(self) -> None:
        """Take over the events of all looks, so that nothing of a look is kept, and write them."""
        self._hand_on(self._new_events())

    def _new_events(self) -> list[tuple[int, str, float]]:
        new = self._events.settle()
        self._found += new[: MOST_EVENTS - len(self._found)]
        return [
            (event.last, _tag(f"non_finite_{name}", event.layer), getattr(event, name))
            for event in new
            for name in ("batches", "channels")
        ]

    def _hand_on(self, numbers: Iterable[tuple[int, str, float]]) -> None:
        """Write all numbers of a step at once, steps in their order."""
        if self._write is None:
            return
        steps = dict[int, dict[str, float]]()
        for step, tag, value in numbers:
            steps.setdefault(step, {})[tag] = value
        for step in sorted(steps):
            self._write(steps[step], step)


def _tag(name: str, layer: str) -> str:
    """Return the tag of a curve: TensorBoard shows those with the same beginning together."""
    return f"{name}/{layer or 'model'}"


def _checked_every(every: int) -> int:
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(
            f"`every` is {every!r}: pass an integer ≥ 1, such as 100 to record every "
            f"hundredth training step"
        )
    return every


def writing(writer: Any, name: str = "writer") -> Callable[[dict[str, float], int], object]:
    """Return a function of the numbers of a step, by their tags, and the step.

    TypeError, in which the argument has this `name`, for what is not a writer.
    """
    add_scalar = getattr(writer, "add_scalar", None)
    if callable(add_scalar):
        return lambda numbers, step: [add_scalar(tag, numbers[tag], step) for tag in numbers]
    if not callable(writer):
        raise TypeError(
            f"`{name}` is a {type(writer).__name__}, which has no add_scalar(tag, value, step): "
            f"pass a torch.utils.tensorboard.SummaryWriter, a function of a dict of numbers and "
            f"the step, or None to write nothing"
        )
    return cast("Callable[[dict[str, float], int], object]", writer)


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


class Step:
    """What the layers do in step `number`; `percentiles` are those of the record before, by path.

    It looks on from its making to `end_forward`, and at gradients to `close`. Of a layer that is
    called several times the first call counts.
    """

    def __init__(
        self, number: int, layers: Mapping[str, nn.Module], percentiles: Mapping[str, Array]
    ) -> None:
        self.number = number
        self.percentiles: dict[str, Array] = {}
        self._layers = layers
        self._before = percentiles
        self._calls = Calls()
        self._gradients: dict[str, dict[str, Tensor]] = {}
        self._expects_gradients = False
        self._forward, self._backward = LongBlock(), LongBlock()
        self._forward.enter(running_eagerly())
        self._forward.enter(watching_layers(layers, before=self._see_input, after=self._see_output))

    @property
    def is_complete(self) -> bool:
        """Whether nothing more will come: the gradients have, or none will."""
        return bool(self._gradients) or not self._expects_gradients

    @property
    def variances(self) -> dict[str, Tensor]:
        """The variances of what the layers were given, (C,) each, by path."""
        return {p: v for channels in self._calls.seen() for p, v in channels.variances.items()}

    def end_forward(self) -> None:
        """Look at no more calls of layers."""
        self._forward.close()

    def close(self) -> None:
        """Look at nothing more."""
        self._forward.close()
        self._backward.close()

    def records(self) -> tuple[Record, ...]:
        """Return what was seen so far, a record for each layer that ran, in the order of running.

        On a GPU this waits for it.
        """
        described: dict[str, dict[str, Any]] = {}
        for channels in self._calls.seen():
            layers = [self._layers[path] for path in channels.paths]
            arrays = channels.arrays()
            now = dict(zip(channels.paths, arrays["percentiles"], strict=True))
            before = [self._before.get(path) for path in channels.paths]
            described |= zip(channels.paths, descriptions(layers, arrays, before), strict=True)
            self.percentiles |= now
        return tuple(self._record(path, described[path]) for path in self._calls.order)

    def _see_input(
        self, path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        values = _batch_in(args[0] if args else kwargs)
        if values is not None:
            self._calls.begin(path, layer, values, fused=is_fused(layer, args, kwargs))

    def _see_output(
        self, path: str, layer: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], out: Any
    ) -> None:
        output = _batch_in(out)
        if output is not None and self._calls.end(path, output):  # None is that of a failure
            self._await_gradients(path, layer, output)

    def _await_gradients(self, path: str, layer: Any, output: Tensor) -> None:
        tensors = {"weight": getattr(layer, "weight", None), "bias": getattr(layer, "bias", None)}
        if torch.is_grad_enabled():
            tensors["output"] = output
        awaited = {n: t for n, t in tensors.items() if isinstance(t, Tensor) and t.requires_grad}
        if awaited:
            self._expects_gradients = True
            see = partial(self._see_gradient, path)
            self._backward.enter(seeing_gradients(awaited, see))

    def _see_gradient(self, path: str, name: str, gradient: Tensor) -> None:
        dtype = torch.promote_types(gradient.dtype, torch.float32)  # norms of halves overflow
        norm = torch.linalg.vector_norm(gradient.detach(), dtype=dtype)
        self._gradients.setdefault(path, {}).setdefault(name, norm)

    def _record(self, path: str, described: dict[str, Any]) -> Record:
        gradients = self._gradients.get(path, {})
        for name in _GRADIENTS:
            described[f"{name}_gradient"] = float(gradients.get(name, math.nan))
        return Record(step=self.number, layer=path, **described)


def _batch_in(values: Any) -> Tensor | None:
    """Return the first tensor of floating values with channels in what a layer takes or gives."""
    tensors = [values] if isinstance(values, Tensor) else tensors_in(values)
    fitting = (t for t in tensors if t.is_floating_point() and t.dim() > 1 and t.numel())
    return next(fitting, None)


class Events:
    """What the layers keep of non-finite mini-batches, looked at now and then.

    bnkit's guard counts them, and running statistics that a NaN or an infinity has entered never
    lose it again, so a look every hundred steps misses none; of layers without either, only the
    inputs in the steps that are looked at are known.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._next_step = 0
        # First and last step of each look that is not settled, and its counts, (L, 3).
        self._looks: list[tuple[int, int, Tensor]] = []
        self._known = {path: (int(_kept_out(layer) or 0), 0) for path, layer in layers.items()}

    def look(self, last: int, variances: Mapping[str, Tensor]) -> None:
        """Look at the layers after the step `last`, with the variances of what it gave them."""
        if last < self._next_step:
            return  # nothing has run since
        counts = [
            count
            for path, layer in self._layers.items()
            for count in (_kept_out(layer), _state(layer), _not_finite(variances.get(path)))
        ]
        self._looks.append((self._next_step, last, _stacked(counts).reshape(-1, 3)))
        self._next_step = last + 1

    def settle(self) -> list[NonFinite]:
        """Return the events of the looks since the last call; on a GPU this waits for it, once."""
        new = []
        for first, last, counts in self._looks:
            for path, (kept_out, in_state, in_input) in zip(
                self._layers, counts.tolist(), strict=True
            ):
                kept_out_before, in_state_before = self._known[path]
                self._known[path] = (kept_out, in_state)
                batches = max(0, kept_out - kept_out_before)
                if batches or in_input or in_state > in_state_before:
                    new.append(NonFinite(path, first, last, batches, max(in_state, in_input)))
        self._looks.clear()
        return new


def _kept_out(layer: nn.Module) -> Tensor | None:
    """Return how many mini-batches the guard kept out."""
    count = getattr(layer, "non_finite_batches", None)
    return count if isinstance(count, Tensor) else None


def _state(layer: nn.Module) -> Tensor | None:
    """Return in how many channels the running statistics are not finite."""
    running = running_statistics(layer)
    return None if running is None else _not_finite(running[0] + running[1])


def _not_finite(values: Tensor | None) -> Tensor | None:
    """Return in how many channels, the last axis, some of the values are not finite."""
    if values is None:
        return None
    return (~values.isfinite()).reshape(-1, values.shape[-1]).any(0).sum()


def _stacked(counts: list[Tensor | None]) -> Tensor:
    """Return a copy of all counts, 0 for None, on the device of the first."""
    device = next((count.device for count in counts if count is not None), None)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return torch.stack([zero if count is None else count.to(zero) for count in counts])
