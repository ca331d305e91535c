"""`explain_gap`: a Keras model run in inference and by the mini-batch's statistics."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import keras
import numpy as np
import torch

from bnkit.keras.batches import inputs_in
from bnkit.keras.graph import check_graph
from bnkit.keras.kernels import Array, array_of
from bnkit.keras.observation import (
    Statistics,
    calling_instead,
    infer,
    normalising_by,
    statistics_of,
)
from bnkit.keras.rebuilding import rebuilt
from bnkit.keras.recalibration import moments_of_input, moments_of_rows, objection_to_measuring
from bnkit.keras.roles import batch_norms_of
from bnkit.moments import Moments
from bnkit.train_eval_gap import Gap, LayerGap
from bnkit.train_eval_gap.output_change import relative_chance, relative_change, root_of_ratio


def explain_gap(model: Any, batch: Any, *, threshold: float = 0.1) -> Gap:
    """Return how far inference differs from training on a mini-batch, and where it begins.

    A copy of the Keras `model` runs twice, both times with dropout off: in inference, and with each
    batch norm normalising by the statistics of the mini-batch, as in training. A layer diverges if
    what its moving statistics alone change is over `threshold`, and over twice what chance makes of
    so few rows: take a mini-batch as large as those of training. `bnkit.explain_gap` says how it is
    computed. `batch` is one mini-batch: inputs, or (x, y). `model` stays as it is.

    Raises TypeError and ValueError for a model that is not Sequential or Functional or not built,
    ValueError for one without a batch norm to compare, for one value per channel and for values
    that are not finite.

    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization(name="n")])
    >>> gap = explain_gap(model, np.arange(100.0)[:, None])
    >>> [layer.layer for layer in gap.diverging], round(gap.layers[0].mean_shift, 1)
    (['n'], 49.5)
    """
    check_graph(model)
    if not (isinstance(threshold, int | float) and 0 <= threshold < np.inf):
        raise ValueError(f"`threshold` is {threshold!r}: pass a number of at least 0, such as 0.1")
    found = list(islice(inputs_in(model, [batch] if isinstance(batch, tuple) else batch), 2))
    if len(found) > 1:
        raise ValueError(
            f"`batch` is a {type(batch).__name__} of several mini-batches: pass one, as an array, "
            f"(x, y) or a dict of inputs"
        )
    (inputs,) = found
    copy = rebuilt(model, {})
    objections = {path: objection_to_measuring(x) for path, x in batch_norms_of(copy).items()}
    left_out = {path: why for path, why in objections.items() if why is not None}
    layers = {path: x for path, x in batch_norms_of(copy).items() if path not in left_out}
    if not layers:
        reasons = "; ".join(f"{path}: {why}" for path, why in left_out.items())
        raise ValueError(
            f"there is no gap to explain: {reasons or 'the model has no BatchNormalization'}"
        )
    comparing = _Comparing(layers, {path: statistics_of(x) for path, x in layers.items()})
    output_difference = comparing.run(copy, inputs)
    left_out |= {path: "it did not run" for path in layers if path not in comparing.seen}
    rows = max(of_rows.count for _, of_rows in comparing.seen.values())
    gaps = tuple(map(comparing.gap_of, comparing.seen))
    return Gap(rows, gaps, output_difference, float(threshold), left_out)


@dataclass(eq=False)
class _Comparing:
    """What was seen of the layers: moments of their inputs, and their outputs in both runs."""

    layers: dict[str, Any]
    moving: dict[str, Statistics]
    seen: dict[str, tuple[Moments, Moments]] = field(default_factory=dict)  # and of their rows
    outputs: dict[str, list[Array]] = field(default_factory=lambda: defaultdict(list))
    differences: dict[str, float] = field(default_factory=dict)

    def run(self, model: Any, inputs: Any) -> float:
        """Run both ways; return how far the outputs of the model are apart."""
        with self._after(lambda path, y: self.outputs[path].append(y)):
            in_inference = outputs_of_run(model, inputs)
        squares: dict[str, list[tuple[float, float]]] = defaultdict(list)

        def compare(path: str, y: Array) -> None:
            squares[path].append(squares_of(y, self.outputs[path].pop(0)))

        with normalising_by(self.layers, self._see), self._after(compare):
            by_batch = outputs_of_run(model, inputs)
        self.differences = {path: relative(found) for path, found in squares.items()}
        return relative(map(squares_of, by_batch, in_inference))

    def gap_of(self, path: str) -> LayerGap:
        layer, (moments, of_rows) = self.layers[path], self.seen[path]
        mean, variance = moments.mean, moments.variance
        moving_mean, moving_variance = map(torch.from_numpy, self.moving[path])
        gamma, beta = (
            None if w is None else torch.from_numpy(array_of(w)) for w in (layer.gamma, layer.beta)
        )
        affine: dict[str, Any] = {"eps": layer.epsilon, "weight": gamma, "bias": beta}
        spread = moving_variance + layer.epsilon
        ratio = (variance + layer.epsilon) / spread
        return LayerGap(
            path,
            type(layer).__name__,
            ((mean - moving_mean).abs() / spread.sqrt()).max().item(),
            ratio.min().item(),
            ratio.max().item(),
            relative_change((mean, variance), (moving_mean, moving_variance), **affine),
            relative_chance(variance, of_rows.squared_error, **affine),
            self.differences[path],
        )

    def _after(self, see: Callable[[str, Array], None]) -> Any:
        def instead_of(path: str) -> Any:
            def instead(call: Any, x: Any, keywords: dict[str, Any]) -> Any:
                y = call(x, **keywords)
                see(path, array_of(y))
                return y

            return instead

        return calling_instead({layer: instead_of(path) for path, layer in self.layers.items()})

    def _see(self, path: str, x: Any, mask: Any) -> Statistics:
        layer = self.layers[path]
        moments = moments_of_input(layer, x, mask, path)
        if moments.count < 2:
            raise ValueError(
                f"`batch` gives layer '{path}' one value per channel, which has no variance: take "
                f"a larger mini-batch"
            )
        before, of_rows = self.seen.get(path), moments_of_rows(layer, x, mask)
        now = (moments, of_rows)
        self.seen[path] = now if before is None else (before[0] + moments, before[1] + of_rows)
        return moments.mean.numpy(), moments.variance.numpy()


def outputs_of_run(model: Any, inputs: Any) -> list[Array]:
    """Return the outputs of a model in inference, in float64."""
    return [array_of(y) for y in keras.tree.flatten(infer(model, inputs))]


def squares_of(values: Array, other: Array) -> tuple[float, float]:
    """Return the squared sizes of the difference of two arrays, and of the first one.

    >>> squares_of(np.array([3.0]), np.array([1.0]))
    (4.0, 9.0)
    """
    with np.errstate(invalid="ignore"):  # infinity from infinity
        same = np.where(values == other, 0.0, values - other)  # the same one does not differ
    size = np.where(np.isfinite(values), values, 0.0)
    return float(np.square(same).sum()), float(np.square(size).sum())


def relative(squares: Any) -> float:
    """Return the root of the sum of the first squares, over that of the second ones.

    >>> relative([(4.0, 9.0), (0.0, 7.0)])
    0.5
    """
    found = list(squares)
    return root_of_ratio(sum(gap for gap, _ in found), sum(size for _, size in found))
