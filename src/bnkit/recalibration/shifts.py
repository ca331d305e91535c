"""`Recalibration`: new statistics of batch norms, and how far the old ones were off."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.dataflow import duplicate
from bnkit.files import plain
from bnkit.internals import AnyBatchNorm
from bnkit.norms import unwrapped
from bnkit.notebooks import Shown
from bnkit.recalibration.samples import Sample
from bnkit.tables import frame_of, path_or_model, text_table


@dataclass(frozen=True)
class LayerShift:
    """How far the running statistics of one layer are from what it is given.

    `mean_shift` is the largest |running mean − mean| over the channels, in standard deviations;
    `least_variance_ratio` and `largest_variance_ratio` are running variance / variance. Standard
    deviations and variances include the layer's eps, as the layer divides by them. `inputs` is the
    number of mini-batches, or calls, and `values` that of values per channel.
    """

    layer: str
    kind: str
    mean_shift: float
    least_variance_ratio: float
    largest_variance_ratio: float
    inputs: int
    values: int


@dataclass(frozen=True, eq=False)
class Buffers:
    """The statistics of one layer: (C,) each, the variance unbiased; None keeps the number."""

    mean: Tensor
    variance: Tensor
    batches: int | Tensor | None


@dataclass(frozen=True)
class Recalibration(Shown):
    """New statistics for the batch norms of a model, measured but not yet applied.

    `layers` says how far each layer's old statistics were off, `left_alone` gives by their paths
    the reasons why others stay as they are. Prints as a table.
    """

    estimator: str
    layers: tuple[LayerShift, ...]
    left_alone: Mapping[str, str]
    new: Mapping[str, Buffers] = field(repr=False, compare=False)
    old: Mapping[str, Buffers] = field(repr=False, compare=False)

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a deep copy of `model` with the new statistics; `model` stays as it is."""
        changed = duplicate(model, gathers=True)
        self.apply_(changed)
        return changed

    def apply_(self, model: nn.Module) -> None:
        """Write the new statistics into the buffers of `model`, in place.

        Raises ValueError, before anything has changed, for a model without one of these layers.
        """
        _write(model, self.new)

    def revert_(self, model: nn.Module) -> None:
        """Write back the statistics that the layers had when they were measured, in place.

        They come back bit by bit, the number of mini-batches included. Raises as `apply_`.
        """
        _write(model, self.old)

    def to_json(self) -> dict[str, Any]:
        """Return estimator, shifts and layers left alone as plain data.

        None stands for numbers that are not finite.
        """
        return {
            "estimator": self.estimator,
            "layers": [plain(asdict(shift)) for shift in self.layers],
            "left_alone": dict(self.left_alone),
        }

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row for each layer; MissingExtraError without pandas."""
        return frame_of(asdict(shift) for shift in self.layers)

    def __str__(self) -> str:
        return table_of_shifts(self.layers, self.left_alone)


def table_of_shifts(layers: Iterable[LayerShift], left_alone: Mapping[str, str]) -> str:
    """Return how far each layer was off, and why others were left alone, as tables."""
    headers = ["layer", "kind", "mean off by", "running variance / variance", "measured on"]
    table = text_table(headers, [_row(shift) for shift in layers])
    if not left_alone:
        return table
    alone = [(path_or_model(path), why) for path, why in left_alone.items()]
    return f"{table}\n\n{text_table(['left alone', 'why'], alone)}"


def shift_of(path: str, layer: AnyBatchNorm, old: Buffers, sample: Sample) -> LayerShift:
    """Return how far the statistics that `layer` had are from the sample of its inputs."""
    moments = sample.moments
    variance = sample.unbiased_variance + layer.eps
    shift = (old.mean.to(moments.mean) - moments.mean).abs() / variance.sqrt()
    ratio = (old.variance.to(moments.mean) + layer.eps) / variance
    return LayerShift(
        path,
        type(layer).__name__,
        shift.max().item(),
        ratio.min().item(),
        ratio.max().item(),
        sample.inputs,
        moments.count,
    )


def buffers_of(layer: AnyBatchNorm) -> Buffers:
    """Return copies of the statistics that `layer` has."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    count = layer.num_batches_tracked
    return Buffers(
        layer.running_mean.clone(),
        layer.running_var.clone(),
        None if count is None else count.clone(),
    )


@torch.no_grad()
def _write(model: nn.Module, statistics: Mapping[str, Buffers]) -> None:
    held = dict(unwrapped(model).named_modules())
    layers = [(_checked(held, path, buffers), buffers) for path, buffers in statistics.items()]
    for layer, buffers in layers:
        layer.running_mean.copy_(buffers.mean)  # type: ignore[union-attr]  # checked
        layer.running_var.copy_(buffers.variance)  # type: ignore[union-attr]
        if layer.num_batches_tracked is not None and buffers.batches is not None:
            layer.num_batches_tracked.copy_(torch.as_tensor(buffers.batches))


def _checked(held: Mapping[str, nn.Module], path: str, buffers: Buffers) -> AnyBatchNorm:
    layer = held.get(path)
    shape = tuple(buffers.mean.shape)
    if not isinstance(layer, AnyBatchNorm) or getattr(layer.running_mean, "shape", None) != shape:
        raise ValueError(
            f"`model` has no batch norm '{path}' with {shape[0]} features and running statistics: "
            f"apply these statistics to the model that was measured, or to a copy of it"
        )
    return layer


def _row(shift: LayerShift) -> tuple[str, ...]:
    low, high = shift.least_variance_ratio, shift.largest_variance_ratio
    return (
        path_or_model(shift.layer),
        shift.kind,
        f"{shift.mean_shift:.3g} std",
        f"{low:.3g} to {high:.3g}",
        f"{shift.inputs:,} mini-batch{'es' * (shift.inputs > 1)}, {shift.values:,} values",
    )
