"""`explain_gap`: why a model in eval mode does not do what it does in training."""

import math
from typing import Any

from torch import Tensor, nn

from bnkit.batches import Inputs, calls_of
from bnkit.dataflow import duplicate
from bnkit.gap.formulas import relative_chance, relative_change
from bnkit.gap.record import Gap, LayerGap
from bnkit.gap.running import InputSample, run_by_batch_statistics, run_in_eval_mode
from bnkit.internals import AnyBatchNorm
from bnkit.norms import batch_norms, why_incomparable, why_same_in_both_modes
from bnkit.observation import on_the_side


def explain_gap(
    model: nn.Module, batch: Any, *, threshold: float = 0.1, inputs: Inputs | None = None
) -> Gap:
    """Return where `model` in eval mode parts from itself in training, on one mini-batch.

    A copy runs twice, without gradients and with dropout off: in eval mode, and with each batch
    norm normalising by the statistics of the mini-batch, as in training. What is compared are the
    statistics of each batch norm in the second run with its running ones, and the outputs of both
    runs. A layer parts the modes by itself where its own difference is over `threshold` and over
    twice what chance makes of so few rows: take a mini-batch as large as those of training, and one
    from the training data to look for wrong statistics, from new data to look for a shift.

    With batch mean μ and variance v of a channel, running mean m and variance r, weight γ and bias
    β, the squared own difference is Σ γ²((√(v/(r+ε)) − √(v/(v+ε)))² + (μ−m)²/(r+ε)) over
    Σ (γ²v/(v+ε) + β²), before any activation. Chance puts 1.5 s²/(v+ε) in place of the brackets,
    where s is the standard error of μ with rows as the units of sampling: s² for the mean, and for
    normal values half as much for the scale.

    `batch` is one mini-batch, in any form that `bnkit.batches.calls_of` takes; `inputs` is the
    same. A layer that trains by its running statistics, frozen or in eval mode inside of a model in
    training mode, normalises by them in both runs. `model`, with the random generators, stays as it
    is, also on errors.

    Raises ValueError for a model without a batch norm to compare, for one value per channel, and
    for values that are not finite; ExampleError, a ValueError, if the model fails in eval mode;
    TypeError for what is no module, hides its layers, or is no mini-batch.

    >>> model = nn.Sequential(nn.BatchNorm1d(1), nn.ReLU(), nn.Dropout())
    >>> gap = explain_gap(model, torch.arange(100.0)[:, None])
    >>> [layer.layer for layer in gap.parting], round(gap.layers[0].mean_shift, 3)
    (['0'], 49.5)
    """
    if not (isinstance(threshold, int | float) and 0 <= threshold < math.inf):
        raise ValueError(f"`threshold` is {threshold!r}: pass a number of at least 0, such as 0.1")
    by_running, by_batch = duplicate(model), duplicate(model)
    (call,) = calls_of(by_running, [batch], inputs=inputs)
    chosen = batch_norms(model, objection=lambda _, layer: _objection(model, layer))
    paths, left_out = list(chosen.paths), chosen.left_alone
    outputs, functions = run_in_eval_mode(by_running, call, paths)
    left_out |= dict.fromkeys(functions, "a function: in which mode it works cannot be seen")
    if not paths:
        raise ValueError(f"there is no gap to explain: {chosen.why_none(model)}")
    with on_the_side(by_batch):
        samples, differences = run_by_batch_statistics(by_batch, call, paths, outputs)
    if not samples:
        raise ValueError(f"none of the batch norms ran: {', '.join(map(repr, paths))}")
    left_out |= {path: "it did not run" for path in paths if path not in samples}
    layers = tuple(
        _gap_of(path, model.get_submodule(path), sample, differences[path])
        for path, sample in samples.items()
    )
    rows = max(sample.rows for sample in samples.values())
    return Gap(rows, layers, differences[""], float(threshold), left_out)


def _objection(model: nn.Module, layer: nn.Module) -> str | None:
    # A layer that is frozen by its momentum alone makes the two modes differ, so it stays.
    return why_incomparable(layer) or why_same_in_both_modes(model, layer)


def _gap_of(path: str, layer: nn.Module, sample: InputSample, difference: float) -> LayerGap:
    assert isinstance(layer, AnyBatchNorm)
    mean, variance = sample.moments.mean, sample.moments.variance
    running_mean, running_var = _as(layer.running_mean, mean), _as(layer.running_var, mean)
    affine: dict[str, Any] = {"eps": layer.eps, "weight": layer.weight, "bias": layer.bias}
    by_running = running_var + layer.eps
    ratio = (variance + layer.eps) / by_running
    return LayerGap(
        path,
        type(layer).__name__,
        ((mean - running_mean) / by_running.sqrt()).abs().max().item(),
        ratio.min().item(),
        ratio.max().item(),
        relative_change(mean, variance, running_mean, running_var, **affine),
        relative_chance(variance, sample.squared_error, **affine),
        difference,
    )


def _as(values: Tensor | None, like: Tensor) -> Tensor:
    assert values is not None
    return values.detach().to(like)
