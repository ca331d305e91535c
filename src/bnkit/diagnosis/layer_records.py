"""`LayerRecord`: one batch norm in plain numbers, for tables and charts; read from the evidence."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnkit.diagnosis.evidence import Evidence
from bnkit.diagnosis.rules.parameters import finite_gamma, is_dead
from bnkit.diagnosis.rules.places import normalises_by_batch
from bnkit.diagnosis.rules.reading import Comparison, Reading, functions, is_finite, readings
from bnkit.diagnosis.rules.running_statistics import is_collapsed, measured_variance
from bnkit.diagnosis.rules.staleness import tolerance
from bnkit.moments import Moments

_LEVELS = (0.0, 0.15, 0.5, 0.85, 1.0)  # the middle three as in figure 4 of Ioffe and Szegedy 2015


@dataclass(frozen=True)
class Spread:
    """How a number is distributed over the channels of a layer: percentiles, of finite values."""

    lowest: float
    p15: float
    median: float
    p85: float
    highest: float


@dataclass(frozen=True)
class LayerRecord:
    """What a batch norm holds and what it was given, in plain numbers; None for what is not known.

    `mean_shift` is batch mean − running mean in running standard deviations, `variance_ratio` batch
    variance / running variance, each with eps, and `gamma` the weight. `dead` is the number of
    channels that γ switches off, `collapsed` of those whose input hardly varies, as the rules
    dead-channels and collapsed-variance count them.

    `difference` is how far the distribution of its output in eval mode is from that in training,
    dropout aside, with all that comes before it: per channel √((μ₁ − μ₂)² + (σ₁ − σ₂)²), root mean
    square over that of the output. `own_difference` is the part of its own running statistics,
    given the same input, as in `explain_gap`; `tolerance` is the threshold of stale-statistics.
    `layer` is its path, or that of the module whose forward calls it as a function; `domain` that
    of a per-domain layer. `values` is how many values per channel were seen in all mini-batches.
    """

    layer: str
    kind: str
    channels: int | None = None
    domain: str = ""
    values: int | None = None
    mean_shift: Spread | None = None
    variance_ratio: Spread | None = None
    own_difference: float | None = None
    difference: float | None = None
    tolerance: float | None = None
    gamma: Spread | None = None
    dead: int | None = None
    collapsed: int | None = None


def layer_records(evidence: Evidence) -> tuple[LayerRecord, ...]:
    """Return a record of each batch norm, in the order in which they run; nothing is run for it.

    >>> from bnkit.diagnosis.gathering import gather
    >>> evidence = gather(torch.nn.BatchNorm1d(2), torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
    >>> (record,) = layer_records(evidence)
    >>> round(record.mean_shift.highest, 3), round(record.variance_ratio.median, 3), record.dead
    (2.0, 1.0, 0)
    """
    flow = evidence.flow or evidence.trained_flow
    calls = [function.call for function in functions(flow)]
    of_functions = {call.scope: call.index for call in reversed(calls)}  # the first call wins

    def place(reading: Reading) -> float:  # the index of its first call; last for what did not run
        if reading.norm is None:
            return of_functions.get(reading.path, math.inf)
        calls = reading.norm.calls or reading.norm.training_calls
        return calls[0].index if calls else math.inf

    return tuple(_record(evidence, reading) for reading in sorted(readings(evidence), key=place))


def _record(evidence: Evidence, reading: Reading) -> LayerRecord:
    held = (reading.running_mean, reading.weight)
    gamma, variance = finite_gamma(reading), measured_variance(reading)
    return LayerRecord(
        layer=reading.path,
        kind=reading.kind,
        channels=next((values.shape[-1] for values in held if values is not None), None),
        domain=reading.domain,
        gamma=None if gamma is None else spread_of(gamma),
        dead=None if gamma is None else int(is_dead(gamma).sum()),
        collapsed=None if variance is None else int(is_collapsed(reading, variance).sum()),
        **_of_statistics(evidence, reading),
    )


def _of_statistics(evidence: Evidence, reading: Reading) -> dict[str, Any]:
    """Return what compares the running statistics with those of the mini-batches."""
    compared, norm = reading.compared, reading.norm
    if compared is None or norm is None:  # functions are not seen
        return {}
    given, by_running = compared.given, compared.variance + reading.eps
    by_batch = normalises_by_batch(evidence, norm)
    found = {
        "values": given.count,
        "mean_shift": spread_of((given.mean - compared.mean) / by_running.sqrt()),
        "variance_ratio": spread_of((given.variance + reading.eps) / by_running),
        "tolerance": tolerance(compared),
        "own_difference": _difference(compared, given, by_batch=by_batch),
    }
    seen = [each.moments for each in norm.in_eval]
    if seen and all(map(is_finite, seen)):
        found["difference"] = _difference(compared, sum(seen[1:], seen[0]), by_batch=by_batch)
    return found


def _difference(compared: Comparison, in_eval: Moments, *, by_batch: bool) -> float | None:
    """Return the distance of the output for inputs `in_eval` from that in training, over its size.

    In training it normalises `by_batch` or, frozen, by the running statistics, as eval mode does.
    """
    reading, trained = compared.reading, compared.given
    own = Moments(1, compared.mean, compared.variance)
    mean, deviation = _normalised(in_eval, own, reading.eps)
    of_training = _normalised(trained, trained if by_batch else own, reading.eps)
    gamma = torch.ones_like(mean) if reading.weight is None else reading.weight
    beta = reading.tensors["bias"].detach().to(mean) if "bias" in reading.tensors else 0.0
    moved = (mean - of_training[0]).square() + (deviation - of_training[1]).square()
    size = (gamma * of_training[1]).square() + (gamma * of_training[0] + beta).square()
    ratio = ((gamma.square() * moved).sum() / size.sum()).sqrt().item() if size.sum() > 0 else 0.0
    return ratio if math.isfinite(ratio) else None


def _normalised(values: Moments, by: Moments, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the values, normalised by the moments of others."""
    scale = (by.variance + eps).rsqrt()
    return (values.mean - by.mean) * scale, values.variance.sqrt() * scale


def spread_of(values: Tensor) -> Spread | None:
    """Return how these numbers, (C,), are distributed; None where none is finite."""
    finite = values[values.isfinite()]
    if not len(finite):
        return None
    return Spread(*torch.quantile(finite, finite.new_tensor(_LEVELS)).tolist())
