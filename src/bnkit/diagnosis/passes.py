"""The three ways in which each mini-batch is run: as trained, in eval mode, in training mode."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.batches import Call
from bnkit.dataflow import duplicate
from bnkit.dataflow.tensors import replace_tensors, tensors_in
from bnkit.diagnosis.evidence import Seen
from bnkit.internals import AnyBatchNorm
from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.moments import Moments, dtype_of_sums
from bnkit.observation import evaluating, seeing_inputs, set_mode
from bnkit.recalibration.estimators import write

# Given a layer, the layer of the diagnosed model and what it is about to see.
Settle = Callable[[nn.Module, Moments], None]


@dataclass(eq=False)
class Pass:
    """One way of running `model`, a copy; `seen` is what the layers were given, by path and call.

    A mini-batch on which the model fails is left out, and `failure` says why the first one did.
    """

    model: nn.Module
    layers: Mapping[str, nn.Module]
    mode: Callable[[nn.Module], AbstractContextManager[object]]
    settle: Settle | None = None
    seen: dict[str, list[Seen]] = field(default_factory=dict)
    failure: str = ""

    def run(self, call: Call) -> Any:
        """Run the model on a copy of this mini-batch and pool what its layers are given.

        Returns what the model does, None where it fails.
        """
        batch: dict[str, list[Seen]] = defaultdict(list)
        rows = rows_of(call)

        def see(path: str, layer: nn.Module, values: Tensor) -> None:
            if values.dim() < 2 or not values.numel():
                return  # the layer itself says what is wrong
            seen = _seen(values, rows)
            batch[path].append(seen)
            if self.settle is not None:
                self.settle(layer, seen.moments)

        args, kwargs = copied(call)
        try:
            with (
                self.mode(self.model),
                seeing_inputs(self.model, self.layers, see),
                torch.no_grad(),
            ):
                output = self.model(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  whatever a model raises; it is reported
            self.failure = self.failure or f"{type(error).__name__}: {error}"
            return None
        for path, calls in batch.items():
            self.seen[path] = _pooled(self.seen.get(path, []), calls)
        return output


@dataclass(frozen=True, eq=False)
class Passes:
    """The three ways."""

    as_trained: Pass
    in_eval: Pass
    in_training: Pass

    def run(self, call: Call) -> tuple[Any, Any]:
        """Run each on this mini-batch; return the outputs as trained and in eval mode."""
        outputs = self.as_trained.run(call), self.in_eval.run(call)
        self.in_training.run(call)
        return outputs


def passes_over(model: nn.Module, paths: list[str]) -> Passes:
    """Return the three ways of running copies of `model`, looking at the layers of these paths.

    >>> passes = passes_over(nn.Sequential(nn.BatchNorm1d(1)), ["0"])
    >>> as_trained, in_eval = passes.run(((torch.tensor([[1.0], [3.0]]),), {}))
    >>> passes.in_eval.seen["0"][0].moments.mean.item()
    2.0
    """

    def way(
        subject: nn.Module,
        mode: Callable[[nn.Module], AbstractContextManager[object]],
        settle: Settle | None = None,
    ) -> Pass:
        layers = {path: subject.get_submodule(path) for path in paths}
        return Pass(subject, layers, mode, settle)

    frozen = {path for path in paths if _is_frozen(model, model.get_submodule(path))}
    measured = duplicate(model)
    kept = {measured.get_submodule(path) for path in frozen}
    return Passes(
        way(measured, evaluating, lambda layer, moments: _settle(layer, moments, kept)),
        way(duplicate(model), evaluating),
        way(training_copy(model), nullcontext),
    )


def training_copy(model: nn.Module) -> nn.Module:
    """Return a copy in the modes of training: its own, if it trains, else all of it trains."""
    copy = duplicate(model)
    return copy if copy.training else set_mode(copy, training=True)


def copied(call: Call) -> Call:
    """Return the call with copies of its tensors, into which the model may write."""
    return replace_tensors(call, lambda tensor: tensor.detach().clone())  # type: ignore[no-any-return]


def _is_frozen(model: nn.Module, layer: nn.Module) -> bool:
    """Return whether training normalises by the running statistics of this layer."""
    return isinstance(layer, FrozenBatchNorm) or (model.training and not layer.training)


def _settle(layer: nn.Module, moments: Moments, kept: set[nn.Module]) -> None:
    """Make the layer, in eval mode, normalise by this mini-batch, as training would."""
    if layer in kept or not isinstance(layer, AnyBatchNorm) or layer.running_mean is None:
        return
    if len(moments.mean) == layer.num_features:
        write(layer, (moments.mean, moments.variance))


def rows_of(call: Call) -> int | None:
    """Return the number of examples in a mini-batch: the length of its first tensor.

    >>> rows_of(((torch.zeros(3, 2),), {}))
    3
    """
    tensors = tensors_in(call)
    return len(tensors[0]) if tensors and tensors[0].dim() else None


def _seen(values: Tensor, rows: int | None) -> Seen:
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


def _pooled(before: list[Seen], now: list[Seen]) -> list[Seen]:
    longer = before[len(now) :] or now[len(before) :]
    return [_pool(*pair) for pair in zip(before, now, strict=False)] + longer


def _pool(before: Seen, now: Seen) -> Seen:
    unpadded = [seen.unpadded for seen in (before, now) if seen.unpadded is not None]
    return Seen(
        before.moments + now.moments,
        before.of_rows + now.of_rows,
        before.of_batches + now.of_batches,
        before.shape,
        min(before.fewest, now.fewest),
        sum(unpadded[1:], unpadded[0]) if unpadded else None,
        before.padding + now.padding,
        before.batches + now.batches,
    )
