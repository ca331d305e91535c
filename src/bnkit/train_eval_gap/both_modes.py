"""`explain_gap`: a model run in eval mode and by the mini-batch's statistics, and what differs."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.batches import Call, Inputs, as_example, calls_of
from bnkit.dataflow import ExampleError, duplicate, observe, whole
from bnkit.dataflow.copying import state_of
from bnkit.dataflow.tensors import replace_tensors, tensors_in
from bnkit.internals import AnyBatchNorm
from bnkit.moments import Moments, dtype_of_sums
from bnkit.norms import Chosen, batch_norms, why_incomparable, why_same_in_both_modes
from bnkit.observation import on_the_side, seeing_inputs, watching
from bnkit.recalibration.estimators import Refuses, Statistics, measure, refusing
from bnkit.recalibration.samples import Sample
from bnkit.roles import is_batch_norm
from bnkit.train_eval_gap.gap import Gap, LayerGap
from bnkit.train_eval_gap.output_change import relative_chance, relative_change, root_of_ratio


def explain_gap(
    model: nn.Module, batch: Any, *, threshold: float = 0.1, inputs: Inputs | None = None
) -> Gap:
    """Return how far eval mode differs from training mode on a mini-batch, and where it begins.

    A copy runs twice, without gradients and with dropout off: in eval mode, and with each batch
    norm normalising by the statistics of the mini-batch, as in training. The second run gives the
    statistics to compare with the running ones; the outputs of both runs are compared too. A layer
    diverges if its own difference is over `threshold` and over twice what chance makes of so few
    rows: take a mini-batch as large as those of training, from the training data to look for wrong
    statistics, from new data to look for a shift.

    With batch mean μ and variance v of a channel, running mean m and variance r, weight γ and bias
    β, the squared own difference is Σ γ²((√(v/(r+ε)) − √(v/(v+ε)))² + (μ−m)²/(r+ε)) over
    Σ (γ²v/(v+ε) + β²), before any activation. Chance puts 1.5 s²/(v+ε) where the brackets are,
    where s is the standard error of μ with rows as the units of sampling: s² for the mean, and for
    normal values half as much for the scale.

    `batch` is one mini-batch, in any form that `bnkit.batches.calls_of` takes; `inputs` is the
    same. A layer that trains by its running statistics, frozen or in eval mode inside a model in
    training mode, normalises by them in both runs. `model`, with the random generators, stays as it
    is, also on errors.

    Raises ValueError for a model without a batch norm to compare, for one value per channel, for
    values that are not finite, and for a model of which a copy writes into the original;
    ExampleError, a ValueError, if the model fails in eval mode; TypeError for what is not a module,
    hides its layers, or is not a mini-batch.

    >>> model = nn.Sequential(nn.BatchNorm1d(1), nn.ReLU(), nn.Dropout())
    >>> gap = explain_gap(model, torch.arange(100.0)[:, None])
    >>> [layer.layer for layer in gap.diverging], round(gap.layers[0].mean_shift, 3)
    (['0'], 49.5)
    """
    if not (isinstance(threshold, int | float) and 0 <= threshold < math.inf):
        raise ValueError(f"`threshold` is {threshold!r}: pass a number of at least 0, such as 0.1")
    model = whole(model)
    by_running = duplicate(model)
    state = state_of(model)
    (call,) = calls_of(by_running, [batch], inputs=inputs)
    # A layer that is frozen by its momentum alone makes the two modes differ, so it stays.
    chosen = batch_norms(
        model,
        objection=lambda _, layer: why_incomparable(layer) or why_same_in_both_modes(model, layer),
    )
    paths, left_out = list(chosen.paths), chosen.left_alone
    outputs, functions = _run_in_eval_mode(by_running, call, paths)
    del by_running  # before there is another copy
    left_out |= dict.fromkeys(functions, "a function: in which mode it works cannot be seen")
    if not paths:
        raise ValueError(f"there is no gap to explain: {chosen.why_none(model)}")
    refused: dict[str, str] = {}
    by_batch = duplicate(model)
    with on_the_side(by_batch):
        samples, differences = _run_by_batch_statistics(
            by_batch, call, paths, outputs, refuses=refusing(model, refused)
        )
    if state_of(model) != state:
        raise ValueError(
            f"a copy of the model ({type(model).__name__}) writes into the original when it runs: "
            f"something in it is shared by both, so nothing is measured; look for functions and "
            f"objects set on its layers"
        )
    if not samples and refused:
        raise ValueError(f"there is no gap to explain: {Chosen({}, refused).why_none(model)}")
    if not samples:
        raise ValueError(f"none of the batch norms ran: {', '.join(map(repr, paths))}")
    idle = [path for path in paths if path not in samples]
    left_out |= dict.fromkeys(idle, "it did not run") | refused
    layers = tuple(
        _gap_of(path, model.get_submodule(path), sample, differences[path])
        for path, sample in samples.items()
    )
    rows = max(of_rows.count for _, of_rows in samples.values())
    return Gap(rows, layers, differences[""], float(threshold), left_out)


_Inputs = tuple[Moments, Moments]  # of a layer's inputs, and of the means of their rows


def _gap_of(path: str, layer: nn.Module, sample: _Inputs, difference: float) -> LayerGap:
    assert isinstance(layer, AnyBatchNorm)
    moments, of_rows = sample
    mean, variance = moments.mean, moments.variance
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
        relative_change((mean, variance), (running_mean, running_var), **affine),
        relative_chance(variance, of_rows.squared_error, **affine),
        difference,
    )


def _as(values: Tensor | None, like: Tensor) -> Tensor:
    assert values is not None
    return values.detach().to(like)


def _run_in_eval_mode(
    model: nn.Module, call: Call, paths: list[str]
) -> tuple[dict[str, list[Tensor]], list[str]]:
    """Return the outputs of the layers and of the model, "", and the batch norms in functions."""
    outputs: dict[str, list[Tensor]] = {path: [] for path in ("", *paths)}

    def keep(path: str, *of_call: Any) -> None:
        if path in outputs:
            outputs[path] += [tensor.detach().clone() for tensor in _floats_in(of_call[-1])]

    try:
        flow = observe(model, as_example(model, call), after=keep)
    except ExampleError as error:
        raise ExampleError(str(error).replace("`example`", "`batch`")) from error
    functions = (c for c in flow.calls if c.module is None and is_batch_norm(c.name))
    return outputs, list(dict.fromkeys(map(str, functions)))


def _run_by_batch_statistics(
    model: nn.Module,
    call: Call,
    paths: list[str],
    outputs: Mapping[str, list[Tensor]],
    *,
    refuses: Refuses,
) -> tuple[dict[str, _Inputs], dict[str, float]]:
    """Return a sample of the layers' inputs in the order in which they run, and all differences.

    `outputs` are those in eval mode; each is forgotten when it has been compared.
    """
    squares: dict[str, list[tuple[float, float]]] = defaultdict(list)
    of_rows: dict[str, Moments] = {}

    def compare(path: str, *of_call: Any) -> None:
        if path in outputs:
            squares[path] += [_squares(t, outputs[path]) for t in _floats_in(of_call[-1])]

    def see(path: str, _layer: nn.Module, values: Tensor) -> None:
        moments = Moments.of_rows(values)
        of_rows[path] = of_rows[path] + moments if path in of_rows else moments

    layers = {path: model.get_submodule(path) for path in paths}
    norms = {path: layer for path, layer in layers.items() if isinstance(layer, AnyBatchNorm)}
    copied = replace_tensors(call, lambda tensor: tensor.detach().clone())
    with watching(model, after=compare), seeing_inputs(model, layers, see):
        seen = measure(model, norms, [copied], normalise=_by_the_mini_batch, refuses=refuses)
    samples = {path: (sample.moments, of_rows[path]) for path, sample in seen.items()}
    return samples, {path: _ratio(squares[path], len(outputs[path])) for path in outputs}


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
    """Return the squared sizes of an output's difference from its counterpart, and of itself.

    Where both are the same infinity, they do not differ.
    """
    other = by_running.pop(0) if by_running else None
    if other is None or other.shape != by_batch.shape:
        return math.inf, 1.0
    a, b = (tensor.detach().to(dtype_of_sums(tensor)) for tensor in (by_batch, other))
    gap = torch.where(a == b, 0.0, a - b)
    size = torch.where(a.isfinite(), a, 0.0)
    return gap.square().sum().item(), size.square().sum().item()


def _ratio(squares: list[tuple[float, float]], unmatched: int) -> float:
    if unmatched:
        return math.inf
    return root_of_ratio(sum(gap for gap, _ in squares), sum(size for _, size in squares))
