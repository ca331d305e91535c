"""The runs of copies of a model: over the mini-batches in three ways, and on the example.

A copy holds as many bytes as the model. Beside the one that `Evidence` keeps, two live at a time.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.batches import Call
from bnkit.dataflow import Dataflow, ExampleError, as_call, duplicate
from bnkit.dataflow.tensors import replace_tensors, tensors_in
from bnkit.dataflow.tracing import observe_in_its_mode
from bnkit.diagnosis.evidence import Failure, Seen, Step, module_of
from bnkit.internals import AnyBatchNorm
from bnkit.moments import Moments, dtype_of_sums
from bnkit.norms import keeps_something_else, why_same_in_both_modes
from bnkit.observation import (
    NotEnoughMemoryError,
    evaluating,
    memory_explained,
    seeing_gradients,
    seeing_inputs,
    set_mode,
    watching,
    watching_layers,
)
from bnkit.surgery.verification import Outcome, trace_itself

Shape = tuple[int, ...]
Mode = Callable[[nn.Module], AbstractContextManager[object]]
# Given a layer of the copy, and the moments of what it is about to get.
Settle = Callable[[nn.Module, Moments], None]


class BatchRuns:
    """Runs each mini-batch in three ways: as trained, in eval mode and in training mode.

    As trained, all batch norms normalise by the mini-batch, as in training, but dropout is off: in
    eval mode each one's running statistics are those of its input while the model runs. The first
    two ways share a copy of the model.

    >>> runs = BatchRuns(nn.Sequential(nn.BatchNorm1d(1)), ["0"])
    >>> as_trained, in_eval = runs.run(((torch.tensor([[1.0], [3.0]]),), {}))
    >>> runs.in_eval.observed.seen["0"][0].moments.mean.item(), as_trained.flatten()
    (2.0, tensor([-1.0000,  1.0000]))
    """

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        evaluated, trained = duplicate(model), trains(duplicate(model))
        layers = {path: evaluated.get_submodule(path) for path in paths}
        settled = {
            layer
            for path, layer in layers.items()
            if isinstance(layer, AnyBatchNorm)
            and layer.running_mean is not None
            and not keeps_something_else(model.get_submodule(path))
            and why_same_in_both_modes(model, model.get_submodule(path)) is None
        }

        @contextmanager
        def as_trained(copy: nn.Module) -> Iterator[None]:
            with evaluating(copy), _lent_statistics(settled):
                yield

        def settle(layer: nn.Module, moments: Moments) -> None:
            if layer in settled and len(moments.mean) == layer.num_features:
                _write(layer, moments.mean, moments.variance)

        self.as_trained = BatchRun(evaluated, layers, as_trained, settle)
        self.in_eval = BatchRun(evaluated, layers, evaluating)
        in_training = {path: trained.get_submodule(path) for path in layers}
        self.in_training = BatchRun(trained, in_training, nullcontext)

    def run(self, call: Call) -> tuple[Any, Any]:
        """Run the mini-batch in each way; return the outputs as trained and in eval mode."""
        outputs = self.as_trained.run(call), self.in_eval.run(call)
        self.in_training.run(call)
        return outputs


@dataclass(eq=False)
class Observed:
    """What the layers were given over all mini-batches in one way of running, by path and call.

    A mini-batch on which the model fails is left out, and is one of `failures`.
    """

    seen: dict[str, list[Seen]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    batches: int = 0

    @property
    def failure(self) -> str:
        """What is said of the first failure, "" for none."""
        return str(self.failures[0]) if self.failures else ""


@dataclass(eq=False)
class BatchRun:
    """One way of running `model`, a copy."""

    model: nn.Module
    layers: Mapping[str, nn.Module]
    mode: Mode
    settle: Settle | None = None
    observed: Observed = field(default_factory=Observed)

    def run(self, call: Call) -> Any:
        """Run the model on a copy of this mini-batch and pool what its layers are given.

        Returns what the model does, None where it fails.
        """
        batch: dict[str, list[Seen]] = defaultdict(list)
        observed, rows = self.observed, rows_of(call)
        observed.batches += 1

        def see(path: str, layer: nn.Module, values: Tensor) -> None:
            if values.dim() < 2 or not values.numel():
                return  # the layer itself says what is wrong
            seen = seen_of(values, rows, observed.batches)
            batch[path].append(seen)
            if self.settle is not None:
                self.settle(layer, seen.moments)

        args, kwargs = replace_tensors(call, _copied)  # into which the model may write
        try:
            with (
                self.mode(self.model),
                seeing_inputs(self.model, self.layers, see),
                torch.no_grad(),
                memory_explained(),
            ):
                output = self.model(*args, **kwargs)
        except NotEnoughMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a model raises; it is reported
            failure = Failure(observed.batches, self._failing_layer(call), _named(error))
            observed.failures.append(failure)
            return None
        for path, calls in batch.items():
            observed.seen[path] = pooled(observed.seen.get(path, []), calls)
        return output

    def _failing_layer(self, call: Call) -> str | None:
        """Return the path of the innermost module that fails on this mini-batch, run again."""
        failing, handled = list[str](), sys.exception()  # that of the first run

        def note(path: str, *_: Any) -> None:
            if sys.exception() is not handled:
                failing.append(path)

        args, kwargs = replace_tensors(call, _copied)
        with (
            suppress(Exception),
            self.mode(self.model),
            watching(self.model, after=note),
            torch.no_grad(),
        ):
            self.model(*args, **kwargs)
        return next(iter(failing), None)


def trains(copy: nn.Module) -> nn.Module:
    """Put a copy in the modes of training: its own, if it trains, else all of it trains."""
    return copy if copy.training else set_mode(copy, training=True)


@contextmanager
def _lent_statistics(layers: Iterable[AnyBatchNorm]) -> Iterator[None]:
    """Give back the running statistics of these layers, which the block writes over."""
    kept = [(each, _copied(each.running_mean), _copied(each.running_var)) for each in layers]
    try:
        yield
    finally:
        for layer, mean, variance in kept:
            _write(layer, mean, variance)


def _write(layer: AnyBatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    with torch.no_grad():
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)


def _copied(tensor: Any) -> Tensor:
    copy: Tensor = tensor.detach().clone()
    return copy


def rows_of(call: Any) -> int | None:
    """Return the number of examples in a mini-batch: the length of its first tensor.

    >>> rows_of(((torch.zeros(3, 2),), {}))
    3
    """
    tensors = tensors_in(call)
    return len(tensors[0]) if tensors and tensors[0].dim() else None


def seen_of(values: Tensor, rows: int | None, number: int) -> Seen:
    """Return what one call with `values` (N, C, ...) shows, in the mini-batch of this number.

    `rows` are those of the mini-batch.
    """
    moments = Moments.of(values)
    means = values.flatten(2).mean(2, dtype=dtype_of_sums(values)) if values.dim() > 2 else values
    unpadded, padding = _without_padding(values, rows)
    of_rows = Moments.of(means)
    return Seen(
        moments,
        of_rows,
        replace(of_rows, deviations=torch.zeros_like(of_rows.deviations)),
        tuple(values.shape),
        moments.count,
        number,
        unpadded,
        padding,
    )


def _without_padding(values: Tensor, rows: int | None) -> tuple[Moments | None, int]:
    """Return the moments without the repeated ends of sequences, and how many positions these are.

    Sequences are (N, C, L), or (N · L, C) where each of `rows` examples has several positions.
    """
    if values.dim() == 2 and rows and len(values) > rows and len(values) % rows == 0:
        values = values.reshape(rows, -1, values.shape[1]).transpose(1, 2)
    if values.dim() != 3 or values.shape[2] < 2:
        return None, 0
    repeats = (values == values[:, :, -1:]).all(1)  # (N, L)
    at_end = repeats.flip(1).cumprod(1).flip(1).bool()
    at_end &= at_end[:, -2:].all(1, keepdim=True)  # one position alone repeats nothing
    real = values.transpose(1, 2)[~at_end]  # (positions, C)
    return (Moments.of(real) if len(real) else None), int(at_end.sum())


def pooled(before: list[Seen], now: list[Seen]) -> list[Seen]:
    """Return what the calls of a forward were given, with those of another mini-batch."""
    longer = before[len(now) :] or now[len(before) :]
    return [_pool(*pair) for pair in zip(before, now, strict=False)] + longer


def _pool(before: Seen, now: Seen) -> Seen:
    unpadded = [seen.unpadded for seen in (before, now) if seen.unpadded is not None]
    smaller = now if now.fewest < before.fewest else before
    return Seen(
        before.moments + now.moments,
        before.of_rows + now.of_rows,
        before.of_batches + now.of_batches,
        before.shape,
        smaller.fewest,
        smaller.smallest,
        sum(unpadded[1:], unpadded[0]) if unpadded else None,
        before.padding + now.padding,
        before.batches + now.batches,
    )


# On the example


@dataclass
class ExampleRuns:
    """What was seen on the example, in eval mode, in training mode, and in one step of training.

    `flow` and `training_flow` are the dataflows, `outcome` is what the model gave in eval mode,
    `shapes` are those of the inputs of the layers, by path and call. Each is None or empty where it
    could not be run, for the reason in its failure.
    """

    flow: Dataflow | None = None
    outcome: Outcome | None = None
    training_flow: Dataflow | None = None
    step: Step | None = None
    failure: str = ""
    training_failure: str = ""
    step_failure: str = ""
    shapes: dict[str, list[Shape]] = field(default_factory=lambda: defaultdict(list))


def run_on_example(model: nn.Module, example: Any, paths: Iterable[str]) -> ExampleRuns:
    """Return what is seen of a copy of `model` on `example`, looking at these layers.

    >>> runs = run_on_example(nn.Sequential(nn.BatchNorm1d(2)), torch.eye(2), ["0"])
    >>> runs.shapes["0"], sorted(runs.step.written_in_forward)
    ([(2, 2)], ['0.num_batches_tracked', '0.running_mean', '0.running_var'])
    """
    found, copy = ExampleRuns(), duplicate(model)
    layers = {path: copy.get_submodule(path) for path in paths}

    def see(path: str, _layer: nn.Module, values: Tensor) -> None:
        found.shapes[path].append(tuple(values.shape))

    try:
        with seeing_inputs(copy, layers, see):
            found.flow, found.outcome = trace_itself(copy, example)
    except ExampleError as error:
        found.failure = str(error)
        copy = duplicate(model)  # that one stopped half-way
    try:
        found.training_flow = observe_in_its_mode(trains(copy), example)
    except ExampleError as error:  # such as one value per channel
        found.training_failure = str(error)
        return found
    try:
        with memory_explained():
            found.step = _step(copy, layers, as_call(example))
    except NotEnoughMemoryError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a model raises; it is reported
        found.step_failure = f"the backward of one training step fails: {_named(error)}"
    return found


def _step(copy: nn.Module, layers: Mapping[str, nn.Module], call: Call) -> Step | None:
    """Return which buffers a forward and its backward change, and what its gradient reaches.

    None where nothing has a gradient.
    """
    args, kwargs = replace_tensors(call, _with_gradient)
    made: dict[str, list[Tensor]] = defaultdict(list)
    reached = set[str]()

    def keep(path: str, _layer: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        made[path] += tensors_in(output)

    with torch.enable_grad(), watching_layers(layers, after=keep):
        before = _buffers(copy)
        outputs = [t for t in tensors_in(copy(*args, **kwargs)) if t.requires_grad]
        between = _buffers(copy)
        if not outputs:
            return None
        named = {
            f"{index} {path}": tensor
            for path, tensors in made.items()
            for index, tensor in enumerate(tensors)
        }
        made = defaultdict(list)  # from here on by checkpointing, which runs the forward again
        with seeing_gradients(named, lambda name, _: reached.add(name.partition(" ")[2])):
            _random_loss(outputs).backward()  # type: ignore[no-untyped-call]
    reached |= {path for path, tensors in made.items() if any(t.requires_grad for t in tensors)}
    gradients = {}
    for name, parameter in copy.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.norm().item()
            parameter.grad = None  # the dataflow keeps the copy alive, but need not keep this
            reached.add(module_of(name))
    ran = {name.partition(" ")[2] for name in named}
    return Step(
        _changed(before, between),
        _changed(between, _buffers(copy)),
        gradients,
        frozenset(ran - reached),
    )


def _random_loss(outputs: list[Tensor]) -> Tensor:
    """Return a random linear function: the sum of what is normalised would have no gradient."""
    return sum((torch.randn_like(t).mul(t).sum() for t in outputs), torch.zeros(()))


def _with_gradient(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    # The copy of a leaf, so that the model may write into it.
    return copy.requires_grad_().clone() if copy.is_floating_point() else copy


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> frozenset[str]:
    return frozenset(
        name
        for name, value in after.items()
        if name in before and not _is_same(value, before[name])
    )


def _is_same(values: Tensor, others: Tensor) -> bool:
    """Return whether all values are the same, NaN as NaN."""
    if values.shape != others.shape:
        return False
    return bool(((values == others) | (values.isnan() & others.isnan())).all())


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
