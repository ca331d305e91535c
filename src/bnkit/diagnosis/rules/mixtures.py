"""Rules on statistics that mix what does not belong together: distributions, and padding."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch

from bnkit.diagnosis.evidence import Evidence, Norm, once
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.fix import Fix, by_edit, in_turn
from bnkit.diagnosis.rules.distances import by_chance, distance, root_mean_square
from bnkit.diagnosis.rules.fixes import become, edit, measuring_trained_anew
from bnkit.diagnosis.rules.places import normalises_by_batch
from bnkit.diagnosis.rules.reading import readings
from bnkit.diagnosis.rules.staleness import CHANGE
from bnkit.layers.domains import DomainBatchNorm
from bnkit.layers.masked import MaskedBatchNorm
from bnkit.moments import Moments
from bnkit.observation import seeing_inputs
from bnkit.surgery.verification import run_itself

_APART = "distance in standard deviations"


def several_distributions(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms whose running statistics mix inputs of several distributions.

    Either the calls in one forward differ, or the mini-batches do. A difference counts that is
    twice what the statistics of one mini-batch are off by chance; between mini-batches it is a
    warning from the threshold of `explain_gap` on, since data in any order differ a little.
    """
    for norm in evidence.norms:
        calls = norm.training_calls or norm.calls
        if len(calls) > 1 and not isinstance(norm.module, DomainBatchNorm):
            yield _between_calls(evidence, norm, len(calls))
    apart = {norm: _between_batches(norm) for norm in evidence.norms if _may_mix(evidence, norm)}
    found = {norm: figures for norm, figures in apart.items() if figures}
    if found:
        worst = max(found.values(), key=lambda figures: figures[_APART])
        yield Finding(
            "several-distributions",
            "warning" if worst[_APART] > CHANGE else "info",
            tuple(norm.path for norm in found),
            worst,
            "The mini-batches come from several distributions (domains, or data sorted by class): "
            "each is normalised by its own statistics in training, and all by one mixture in eval "
            "mode.",
            "Shuffle the data; for domains, give each its own statistics: "
            'bnkit.convert(model, "domains", domains=[...]), and run each under '
            "bnkit.domain(model, name).",
        )


def padding_in_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms over sequences whose ends are padding, where that moves the statistics.

    Padding is what repeats the last position of a sequence to the bit, two positions at least.
    Moved more than by chance, the statistics depend on how long the longest sequence is.
    """
    for norm in evidence.norms:
        masked = isinstance(norm.module, MaskedBatchNorm)
        if masked or not normalises_by_batch(evidence, norm):
            continue
        for seen in norm.as_trained[:1]:
            if seen.unpadded is None or not seen.padding:
                continue
            moved = distance(norm.module, seen.unpadded, seen.moments)
            chance = by_chance(norm.module, seen)
            yield Finding(
                "padding-in-statistics",
                "warning" if moved > chance else "info",
                (norm.path,),
                {
                    "share of padding": seen.padding / seen.moments.count,
                    "share of output moved": moved,
                    "by chance": chance,
                },
                "The ends of the sequences are padding, which enters mean and variance, so they "
                "depend on the longest sequence of the mini-batch.",
                'Keep it out: bnkit.convert(model, "masked"), and run the model under '
                "bnkit.mask(real).",
                become("masked", norm.path),
            )


def _between_calls(evidence: Evidence, norm: Norm, calls: int) -> Finding:
    pairs = list(combinations(norm.as_trained, 2))
    apart = max((distance(norm.module, a.moments, b.moments) for a, b in pairs), default=None)
    chance = max((by_chance(norm.module, seen) for seen in norm.as_trained), default=math.inf)
    measured: dict[str, Any] = {"calls in one forward": calls}
    if apart is not None:
        measured |= {_APART: apart, "by chance": chance}
    return Finding(
        "several-distributions",
        "warning" if apart is not None and apart > 2 * chance else "info",
        (norm.path,),
        measured,
        "This batch norm runs several times in one forward, and all calls share its running "
        "statistics: where their inputs differ, eval mode normalises each by a mixture."
        + ("" if pairs else " Give mini-batches to have the difference measured."),
        "Give each place a batch norm of its own (weights may stay shared).",
        _apart(evidence, norm),
    )


def _apart(evidence: Evidence, norm: Norm) -> Fix | None:
    """Return the fix where a batch norm has several paths: a copy at each, with its statistics."""
    paths = _paths_of_modules(evidence)[id(norm.module)]
    copies = in_turn(
        *(by_edit(edit(path, "unshare", "become a copy"), needs=[path]) for path in paths[1:])
    )
    reading = next(reading for reading in readings(evidence) if reading.norm is norm)
    if copies is None or reading.untouched or reading.compared is None:
        return copies
    order = _order_of_calls(evidence, copies, paths)
    if len(order) != len(norm.as_trained):
        return copies
    own: dict[str, list[Moments]] = defaultdict(list)
    for path, seen in zip(order, norm.as_trained, strict=True):
        own[path].append(seen.moments)
    writes = (_holding(path, sum(moments[1:], moments[0])) for path, moments in own.items())
    return in_turn(measuring_trained_anew(evidence), copies, *writes)


def _order_of_calls(evidence: Evidence, copies: Fix, paths: Sequence[str]) -> list[str]:
    """Return the path of each call, in order, of a model in which the copies are apart."""
    model, order = copies(evidence.model), list[str]()
    layers = {path: model.get_submodule(path) for path in paths}
    with seeing_inputs(model, layers, lambda path, *_: order.append(path)):
        run_itself(model, evidence.example)
    return order


def _holding(path: str, moments: Moments) -> Fix:
    values = {"running_mean": moments.mean, "running_var": moments.unbiased_variance}
    written = edit(path, "write_values", "hold the statistics of its place", values=values)
    return by_edit(written, needs=[path])


@once
def _paths_of_modules(evidence: Evidence) -> Mapping[int, list[str]]:
    paths = defaultdict(list)
    for path, module in evidence.model.named_modules(remove_duplicate=False):
        paths[id(module)].append(path)
    return paths


def _may_mix(evidence: Evidence, norm: Norm) -> bool:
    of_one = len(norm.as_trained) == 1 and norm.as_trained[0].batches > 1
    per_domain = isinstance(norm.module, DomainBatchNorm)
    return of_one and not per_domain and normalises_by_batch(evidence, norm)


def _between_batches(norm: Norm) -> dict[str, float]:
    """Return how far mini-batches are apart, where that is more than chance.

    For rows drawn alike the variance between the means of mini-batches, of rows and of any sizes,
    is that within them, each sum of squares over its degrees of freedom (Fisher's analysis of
    variance). Where all channels vary together their ratio has the F distribution. It counts from
    twice the variance and four standard deviations on, beyond which chance takes 1 layer in 30,000.
    """
    (seen,) = norm.as_trained
    batches, rows = seen.batches, seen.of_rows.count / seen.batches
    freedom = seen.of_rows.count - batches
    if freedom < 1:
        return {}
    between = seen.of_batches.deviations / (batches - 1)
    within = (seen.of_rows.deviations - seen.of_batches.deviations).clamp(min=0) / freedom
    real = within > 1e-6 * (seen.moments.variance + 1e-30)  # else a constant, up to rounding
    ratios = torch.where(real, between / within.clamp(min=1e-30), 1.0)
    ratio = root_mean_square(ratios, norm.module) ** 2
    if ratio <= 2 or _deviate(ratio, batches - 1, freedom) <= 4:
        return {}
    excess = (between - within).clamp(min=0) / rows / (seen.moments.variance + 1e-30)
    return {
        "variance between mini-batches / by chance": ratio,
        "distance in standard deviations": 2 * root_mean_square(excess, norm.module),
    }


def _deviate(ratio: float, between: float, within: float) -> float:
    """Return the normal deviate of a ratio of variances with these degrees of freedom.

    The cube root of a ratio is nearly normal (Paulson 1942, "An approximate normalization of the
    analysis of variance distribution").

    >>> round(_deviate(17.14, 1, 14), 1)  # F(1, 14) is over 17.14 with the probability 0.001
    3.1
    """
    root, of_between, of_within = ratio ** (1 / 3), 2 / (9 * between), 2 / (9 * within)
    apart = (1 - of_within) * root - (1 - of_between)
    return float(apart / math.sqrt(of_within * root**2 + of_between))
