"""Two runs of a model on one mini-batch: in eval mode, and by the mini-batch's statistics."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.batches import Call, as_example
from bnkit.dataflow import ExampleError, observe
from bnkit.dataflow.tensors import replace_tensors, tensors_in
from bnkit.gap.formulas import root_of_ratio
from bnkit.internals import AnyBatchNorm
from bnkit.moments import Moments, dtype_of_sums
from bnkit.observation import seeing_inputs, watching
from bnkit.recalibration.estimators import Statistics, measure
from bnkit.recalibration.samples import Sample
from bnkit.roles import is_batch_norm


@dataclass(frozen=True, eq=False)
class InputSample:
    """The moments of a layer's inputs, and those of the means of their rows."""

    moments: Moments
    of_rows: Moments

    @property
    def rows(self) -> int:
        """How many rows there were, over all calls of the layer."""
        return self.of_rows.count

    @property
    def squared_error(self) -> Tensor:
        """The squared standard error of the mean, (C,), with rows as the units of sampling."""
        if self.rows < 2:
            return torch.full_like(self.of_rows.mean, math.inf)
        return self.of_rows.unbiased_variance / self.rows


def run_in_eval_mode(
    model: nn.Module, call: Call, paths: list[str]
) -> tuple[dict[str, list[Tensor]], list[str]]:
    """Return the outputs of the layers and of the model, "", and the batch norms in functions."""
    outputs: dict[str, list[Tensor]] = {path: [] for path in ("", *paths)}

    def keep(path: str, *of_call: Any) -> None:
        if path in outputs:
            outputs[path] += [tensor.detach().clone() for tensor in _floats_in(of_call[-1])]

    try:
        with watching(model, after=keep):
            flow = observe(model, as_example(model, call))
    except ExampleError as error:
        raise ExampleError(str(error).replace("`example`", "`batch`")) from error
    functions = (c for c in flow.calls if c.module is None and is_batch_norm(c.name))
    return outputs, list(dict.fromkeys(map(str, functions)))


def run_by_batch_statistics(
    model: nn.Module, call: Call, paths: list[str], outputs: Mapping[str, list[Tensor]]
) -> tuple[dict[str, InputSample], dict[str, float]]:
    """Return a sample of the layers' inputs in the order in which they run, and all differences.

    `outputs` are those in eval mode; each is forgotten when it has been compared.
    """
    parts: dict[str, list[tuple[float, float]]] = defaultdict(list)
    of_rows: dict[str, Moments] = {}

    def compare(path: str, *of_call: Any) -> None:
        if path in outputs:
            parts[path] += [_squares(t, outputs[path]) for t in _floats_in(of_call[-1])]

    def see(path: str, _layer: nn.Module, values: Tensor) -> None:
        means = (
            values.flatten(2).mean(2, dtype=dtype_of_sums(values)) if values.dim() > 2 else values
        )
        moments = Moments.of(means)
        of_rows[path] = of_rows[path] + moments if path in of_rows else moments

    layers = {path: model.get_submodule(path) for path in paths}
    norms = {path: layer for path, layer in layers.items() if isinstance(layer, AnyBatchNorm)}
    copied = replace_tensors(call, lambda tensor: tensor.detach().clone())
    with watching(model, after=compare), seeing_inputs(model, layers, see):
        seen = measure(model, norms, [copied], normalise=_by_the_mini_batch)
    samples = {path: InputSample(sample.moments, of_rows[path]) for path, sample in seen.items()}
    return samples, {path: _ratio(parts[path], len(outputs[path])) for path in outputs}


def _by_the_mini_batch(path: str, sample: Sample, _place: str) -> Statistics:
    if sample.moments.count < 2:
        raise ValueError(
            f"`batch` gives layer '{path}' one value per channel, which has no variance: take a "
            f"larger mini-batch"
        )
    return sample.moments.mean, sample.moments.variance


def _floats_in(output: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


def _squares(by_batch: Tensor, by_running: list[Tensor]) -> tuple[float, float]:
    """Return the squared sizes of what parts an output from its first counterpart, and of itself.

    Where both are the same infinity, nothing parts them.
    """
    other = by_running.pop(0) if by_running else None
    if other is None or other.shape != by_batch.shape:
        return math.inf, 1.0
    a, b = (tensor.detach().to(dtype_of_sums(tensor)) for tensor in (by_batch, other))
    gap = torch.where(a == b, 0.0, a - b)
    size = torch.where(a.isfinite(), a, 0.0)
    return gap.square().sum().item(), size.square().sum().item()


def _ratio(parts: list[tuple[float, float]], unmatched: int) -> float:
    if unmatched:
        return math.inf
    return root_of_ratio(sum(gap for gap, _ in parts), sum(size for _, size in parts))
