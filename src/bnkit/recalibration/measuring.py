"""One pass over mini-batches: a sample of what each layer is given."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnkit.batches import Call
from bnkit.internals import AnyBatchNorm
from bnkit.moments import Moments
from bnkit.observation import seeing_inputs


@dataclass(frozen=True, eq=False)
class Sample:
    """The pooled moments of a layer's inputs, how many inputs those were, and of how many rows."""

    moments: Moments
    inputs: int
    rows: int

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(
            self.moments + other.moments, self.inputs + other.inputs, self.rows + other.rows
        )


Statistics = tuple[Tensor, Tensor]  # mean and variance, (C,) each
# From a path, a sample of one input and where that is, for errors; None keeps the statistics.
Normalise = Callable[[str, Sample, str], Statistics | None]


def measure(
    model: nn.Module,
    layers: Mapping[str, AnyBatchNorm],
    calls: Iterable[Call],
    *,
    normalise: Normalise,
) -> dict[str, Sample]:
    """Return a sample of each layer's inputs over all calls, in the order in which they first ran.

    `model` runs in the mode that it is in. What `normalise` returns for an input is what the layer
    normalises it by; these statistics are written into its buffers, so pass a copy. Layers that
    did not run are not in the result. Raises ValueError, naming the mini-batch and the layer, for
    inputs that are not finite.
    """
    seen: dict[str, Sample] = {}
    number = 0

    def see(path: str, layer: nn.Module, values: Tensor) -> None:
        assert isinstance(layer, AnyBatchNorm)
        if values.dim() < 2 or values.shape[1] != layer.num_features or not values.numel():
            return  # the layer itself says what is wrong
        sample = Sample(Moments.of(values), inputs=1, rows=len(values))
        seen[path] = seen[path] + sample if path in seen else sample
        statistics = normalise(path, sample, f"mini-batch {number} gives layer '{path}'")
        if statistics is not None:
            write(layer, statistics)

    with seeing_inputs(model, layers, see):
        for number, (args, kwargs) in enumerate(calls, start=1):
            model(*args, **kwargs)
            _refuse_non_finite(seen, number)
    return seen


def write(layer: AnyBatchNorm, statistics: Statistics) -> None:
    """Write mean and variance over the running statistics of `layer`, in their memory."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(statistics[0])
    layer.running_var.copy_(statistics[1])


def _refuse_non_finite(seen: Mapping[str, Sample], number: int) -> None:
    for path, sample in seen.items():
        if not torch.isfinite(sample.moments.deviations.sum()):
            raise ValueError(
                f"mini-batch {number} gives layer '{path}' values that are not finite (NaN, "
                f"infinite, or too large for their squares): leave it out of `batches`, or mend "
                f"what comes before that layer"
            )


def unbiased(moments: Moments) -> Tensor:
    """Return the unbiased variance, (C,), and 0 where one value per channel has none."""
    return moments.unbiased_variance if moments.count > 1 else moments.deviations
