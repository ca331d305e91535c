"""`calibrate`: layers that normalise by other statistics give each channel its mean and std again.

And `movement`: how far the output of the model moves nevertheless.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnkit.batches import Call, Inputs, as_example, calls_of, refuse_iterator
from bnkit.behaviour import behaviour_of
from bnkit.dataflow import duplicate
from bnkit.functional import batch_norm
from bnkit.internals import AnyBatchNorm
from bnkit.layers.activated import path_of_norm
from bnkit.moments import Moments
from bnkit.observation import on_the_side, seeing_inputs
from bnkit.surgery.conversion.kinds import family_of
from bnkit.surgery.conversion.recasting import state_of
from bnkit.surgery.insertion import run_batch
from bnkit.surgery.operations import Edit, make_edits, write_values
from bnkit.surgery.verification import SurgeryError, distance, run

Calls = Callable[[], Iterator[Call]]
Transform = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Movement:
    """How far the output of a changed model is from that of the original, in eval mode.

    `typical` is the root mean square of the difference over that of the original's output, and
    `largest` max|a − b| / max|a|, over all outputs on so many mini-`batches`.
    """

    typical: float
    largest: float
    batches: int

    def __str__(self) -> str:
        number = f"{self.batches} mini-batch{'es' * (self.batches != 1)}"
        if not self.largest:
            return f"The same output on {number} in eval mode."
        share = f"{self.typical:.2%}" if self.typical >= 1e-4 else f"{self.typical:.1e}"
        return (
            f"Another function: on {number} in eval mode the output moves by {share} (root mean "
            f"square; error max|a − b| / max|a| {self.largest:.1e}). Evaluate the model, and "
            f"fine-tune it, before you use it."
        )


def calibrate(
    model: nn.Module, edits: Mapping[str, Edit], calls: Calls
) -> dict[str, dict[str, Tensor]]:
    """Return for the layers that `edits` make, by path, the state that keeps their channels.

    The weight and the bias are those with which the output of the changed layer, before the
    activation, has in each channel the mean and the standard deviation that the original gave in
    eval mode, pooled over all mini-batches; the sign of the weight stays. What becomes a batch norm
    of its own statistics also gets those of its inputs. The layers are calibrated in the order in
    which they run, each on what the calibrated ones before it make, by one pass for each and one
    more. Layers that do not run are not in the result.
    """
    wanted = _output_moments(duplicate(model), edits, calls)
    working = duplicate(model)
    states: dict[str, dict[str, Tensor]] = {}
    for path in wanted:
        make_edits(working, [edits[path]])
        inside = path_of_norm(working, path)
        states[path] = _calibrated(working, inside, wanted[path], calls)
        write_values(working, inside, values=states[path])
    return states


def movement(original: nn.Module, changed: nn.Module, examples: Iterable[Any]) -> Movement:
    """Return how far `changed` is from `original` on these examples, in eval mode."""
    squares, gaps, largest, number = 0.0, 0.0, 0.0, 0
    for number, example in enumerate(examples, start=1):
        before, after = (run(model, example).outputs for model in (original, changed))
        largest = max(largest, distance(before, after).error)
        if math.isinf(largest):
            return Movement(math.inf, math.inf, number)
        for a, b in zip(before, after, strict=True):
            squares += _sum_of_squares(a)
            gaps += _sum_of_squares(a.double() - b.double() if not a.is_complex() else a - b)
    typical = math.sqrt(gaps / squares) if squares else math.sqrt(gaps)
    return Movement(typical, largest, number)


def _sum_of_squares(values: Tensor) -> float:
    wide = values.abs().double()
    return torch.where(wide.isfinite(), wide, 0.0).square().sum().item()


def _output_moments(model: nn.Module, paths: Iterable[str], calls: Calls) -> dict[str, Moments]:
    """Return the moments of what each layer gives before its activation, in order of first call."""
    layers: dict[str, Any] = {path: model.get_submodule(path) for path in paths}
    moments, _ = _moments(model, layers, calls, _normalised)
    affine = {path: state_of(layer).parameters for path, layer in layers.items()}
    return {path: _affine(m, *affine[path].values()) for path, m in moments.items()}


def _calibrated(model: nn.Module, path: str, wanted: Moments, calls: Calls) -> dict[str, Tensor]:
    layer: Any = model.get_submodule(path)
    state: dict[str, Tensor] = {}
    if getattr(layer, "running_mean", None) is None:
        given = _moments(model, {path: layer}, calls, _normalised)[0][path]
    else:
        seen, batches = _moments(model, {path: layer}, calls, lambda _, x: x)
        inputs = seen[path]
        state = _statistics(path, inputs, batches)
        invstd = (state["running_var"] + layer.eps).rsqrt()
        given = _affine(inputs, invstd, -inputs.mean * invstd)
    sign = torch.ones_like(given.mean) if layer.weight is None else _wide(layer.weight).sign()
    ratio = (wanted.deviations / given.deviations).sqrt()
    weight = torch.where(given.deviations > 0, sign * ratio, sign)
    state |= {"weight": weight, "bias": wanted.mean - weight * given.mean}
    if not all(value.isfinite().all() for value in state.values()):
        raise SurgeryError(
            f"layer '{path}' gets or gives values on the mini-batches that are not finite, so "
            f"nothing calibrates it: look for NaN and infinite values in them, or leave the layer "
            f"out by `where`"
        )
    return state


def _statistics(path: str, inputs: Moments, batches: int) -> dict[str, Tensor]:
    if inputs.count < 2:
        raise SurgeryError(
            f"layer '{path}' gets 1 value per channel over all mini-batches, and one value has no "
            f"variance: pass more"
        )
    return {
        "running_mean": inputs.mean,
        "running_var": inputs.unbiased_variance,
        "num_batches_tracked": torch.tensor(batches),
    }


def _moments(
    model: nn.Module, layers: Mapping[str, nn.Module], calls: Calls, transform: Transform
) -> tuple[dict[str, Moments], int]:
    """Return the moments of the transformed inputs of layers, by one pass, and the batches."""
    seen: dict[str, Moments] = {}
    number = 0

    def see(path: str, layer: nn.Module, values: Tensor) -> None:
        moments = Moments.of(transform(layer, values))
        seen[path] = seen[path] + moments if path in seen else moments

    with on_the_side(model), seeing_inputs(model, layers, see):
        for number, call in enumerate(calls(), start=1):
            run_batch(model, call, f"mini-batch {number}")
    return seen, number


def _normalised(layer: Any, x: Tensor) -> Tensor:
    """Return what the layer makes of `x` in eval mode, but for weight, bias and what follows."""
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, eps=layer.eps)
    mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    if mean is None and family_of(layer) == "instance":
        return F.instance_norm(x, eps=layer.eps)
    eps = layer.eps if isinstance(layer, AnyBatchNorm) else behaviour_of(layer).eps
    assert eps is not None  # the survey has let it pass
    return batch_norm(x, mean, variance, training=mean is None, momentum=0.0, eps=eps)


def _affine(moments: Moments, scale: Tensor | None, offset: Tensor | None) -> Moments:
    """Return the moments of scale · x + offset."""
    scale = torch.ones_like(moments.mean) if scale is None else _wide(scale)
    mean = moments.mean * scale
    return Moments(
        moments.count,
        mean if offset is None else mean + _wide(offset),
        moments.deviations * scale.square(),
    )


def _wide(values: Tensor) -> Tensor:
    return values.detach().double()


# --- what the user gives: an example, or mini-batches


@dataclass(frozen=True)
class Given:
    """The `example_or_batches` for a model, in the sense in which they are needed.

    A tensor, a tuple or a dict is an example where one is needed; what else it may be, it is
    mini-batches.
    """

    model: nn.Module
    data: Any
    inputs: Inputs | None = None

    def example(self) -> Any:
        """Return the example, or the first of mini-batches; None if nothing was given."""
        return None if self.data is None else next(self.examples())

    def examples(self) -> Iterator[Any]:
        """Yield the example, or each of the mini-batches as one."""
        if self.inputs is None and isinstance(self.data, Tensor | tuple | dict):
            yield self.data
        else:
            yield from self.batches()

    def batches(self) -> Iterator[Any]:
        """Yield each of the mini-batches as an example."""
        return (as_example(self.model, call) for call in self.calls())

    def calls(self) -> Iterator[Call]:
        """Yield the calls of the mini-batches."""
        return calls_of(self.model, self.data, inputs=self.inputs)

    def first_of_many(self, to: str) -> Any:
        """Return the first mini-batch; ValueError without any that can be read several times."""
        if self.data is None:
            raise ValueError(
                f"`example_or_batches` is None, and layers are calibrated on mini-batches when "
                f"they become {to!r}: pass a DataLoader, or another iterable of mini-batches"
            )
        refuse_iterator(self.data, "calibration passes over them once for each layer")
        return next(self.batches())
