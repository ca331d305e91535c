"""`reliability`, `speed` and `quality`: what is tested of two sides, with the seed as the unit."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeGuard

import numpy as np

from bnkit.experiments.metrics import Metric
from bnkit.experiments.statistics import (
    Mean,
    PairedRatio,
    paired_ratio,
    rounding_variance,
    seeds_to_win,
    sign_test,
    smallest_step,
)
from bnkit.tables import several

Criterion = Literal["reliability", "speed", "quality"]

RATE_MARGIN = 0.25  # of the share of runs that train
STEPS_MARGIN = 1.25  # times as many steps
STEPS_BOUND = f"{STEPS_MARGIN:g} times the steps"


class Interval(NamedTuple):
    """Bounds of an estimate and their confidence."""

    low: float
    high: float
    confidence: float


class Arrival(NamedTuple):
    """The first measured `step` at which a run is at the target, and the one measured before it.

    For a run that never gets there `step` is the length of the longest run of the sweep, and
    `reached` is False. `seconds` is the time of so many training steps.
    """

    step: int
    before: int = 0
    reached: bool = True
    seconds: float = math.nan


@dataclass(frozen=True)
class Measured:
    """What was measured of two sides, seed by seed, each a pair of (first, other).

    `trained` holds of each seed how many of its `runs` of a side train. `arrivals` and `values`,
    of the metric on test data, are of each side's own best setting; a value is None where there is
    none, and a difference of less than `margin` counts as none. `target` is written with the
    metric, as in "90% held-out accuracy". `slowdown` is the time of a step of the other side
    divided by that of the first.
    """

    first: str
    other: str
    runs: Sequence[int]
    trained: Sequence[tuple[int, int]]
    arrivals: Sequence[tuple[Arrival, Arrival]]
    values: Sequence[tuple[float | None, float | None]]
    metric: Metric
    target: str
    margin: float
    slowdown: float | None = None

    @property
    def ratio(self) -> PairedRatio:
        """The ratio of steps to the target of the pairs that both get there."""
        return paired_ratio(
            (first.step if first.reached else None, other.step if other.reached else None)
            for first, other in self.arrivals
        )

    @property
    def with_other(self) -> str:
        """In a sentence: with the other side."""
        return f"with {self.other}"

    @property
    def with_first(self) -> str:
        """In a sentence after `with_other`: with the first side."""
        return "without it" if self.first == "plain" else f"with {self.first}"

    @property
    def other_than_first(self) -> str:
        """In a sentence after "as many": the other side beside the first."""
        return f"{self.with_other} as {self.with_first}"

    @property
    def first_than_other(self) -> str:
        """In a sentence after "as many": the first side beside the other."""
        if self.first == "plain":
            return f"without {self.other} as with it"
        return f"with {self.first} as with {self.other}"


@dataclass(frozen=True)
class CriterionTests:
    """A criterion and its two tests: that the sides differ, and that they do not by `margin`.

    `gain` is larger than 0 where the other side is better. `p_different` and `p_within` are the
    p-values, `estimate` and its `interval`, for a confidence, are in the unit of `margin`. `bound`
    is the margin in words, and `told` gives the sentence for an interval. There are `seeds`, and
    at a level so many in all would show it, by the spread seen: `to_differ` and `to_agree`.
    """

    criterion: Criterion
    seeds: int
    margin: float
    bound: str
    told: Callable[[Interval | None], str]
    gain: float = 0.0
    p_different: float = 1.0
    p_within: float = 1.0
    estimate: float | None = None
    interval: Callable[[float], Interval | None] = lambda _: None
    to_differ: Callable[[float], int | None] = lambda _: None
    to_agree: Callable[[float], int | None] = lambda _: None


def reliability(measured: Measured) -> CriterionTests:
    """Return whether more runs of a seed train on one side, by an exact sign test over seeds.

    That the share of runs that train differs by less than a quarter is for two one-sided t-tests.
    """
    first, other = (sum(side) for side in zip(*measured.trained, strict=True))
    runs, seeds = sum(measured.runs), len(measured.runs)
    more = sum(b > a for a, b in measured.trained)
    fewer = sum(b < a for a, b in measured.trained)
    p_value = sign_test(more, fewer)
    shares = [(b - a) / n for (a, b), n in zip(measured.trained, measured.runs, strict=True)]
    # Both shares of a seed are known to one run.
    rounding = np.mean([2 * rounding_variance(1 / n) for n in measured.runs])
    mean = Mean.of(shares, rounding=rounding)
    text = (
        f"{other} of {runs} runs train {measured.with_other}, {first} {measured.with_first}: more "
        f"in {more} of {several(seeds, 'seed')}, fewer in {fewer} (sign test, p = {p_value:.2g})."
    )
    return CriterionTests(
        "reliability",
        seeds,
        RATE_MARGIN,
        "a quarter of the runs",
        lambda _: text,
        gain=more - fewer,
        p_different=p_value,
        p_within=mean.p_within(RATE_MARGIN),
        estimate=mean.mean,
        interval=_interval(mean),
        to_differ=lambda level: seeds_to_win(more, fewer, seeds, level),
        to_agree=lambda level: mean.seeds_to_lie_within(RATE_MARGIN, level),
    )


def speed(measured: Measured) -> CriterionTests:
    """Return the tests of the steps to the target: how many times as many the first side takes.

    A run that never gets there counts with the length of the longest run of the sweep, which makes
    the ratio less extreme than it is. A pair in which neither gets there says nothing.
    """
    seeds = len(measured.runs)
    pairs = [pair for pair in measured.arrivals if any(run.reached for run in pair)]
    if not pairs:
        nothing = f"No run of either side gets to {measured.target} at its best setting."
        return CriterionTests("speed", seeds, STEPS_MARGIN, STEPS_BOUND, lambda _: nothing)
    logarithms = [math.log(first.step / other.step) for first, other in pairs]
    mean = Mean.of(logarithms, rounding=np.mean([sum(map(_rounding, pair)) for pair in pairs]))
    ratio, absences = math.exp(mean.mean), _absences(measured, pairs)
    seconds = paired_ratio(
        (first.seconds, other.seconds)
        for first, other in pairs
        if first.seconds > 0 and other.seconds > 0  # unknown ones are NaN
    ).ratio

    def told(interval: Interval | None) -> str:
        more, way, time = ratio, measured.first_than_other, seconds
        if ratio < 1:  # told the other way round, its seconds too
            more, way, time = 1 / ratio, measured.other_than_first, seconds and 1 / seconds
            interval = interval and Interval(1 / interval.high, 1 / interval.low, interval[2])
        return (
            f"To {measured.target} the network takes about {about(more)} times as many steps "
            f"{way}{_bounds(interval, about)}, each at its own best setting.{absences}"
            f"{'' if time is None else f' In seconds it is about {about(time)} times.'}"
        )

    margin = math.log(STEPS_MARGIN)
    return CriterionTests(
        "speed",
        seeds,
        STEPS_MARGIN,
        STEPS_BOUND,
        told,
        gain=mean.mean,
        p_different=mean.p_different(),
        p_within=1.0 if _lopsided(measured.ratio) else mean.p_within(margin),
        estimate=ratio,
        interval=_interval(mean, _exponential),
        to_differ=lambda level: _in_all(mean.seeds_to_differ(level), mean, seeds),
        to_agree=lambda level: (
            None
            if _lopsided(measured.ratio)
            else _in_all(mean.seeds_to_lie_within(margin, level), mean, seeds)
        ),
    )


def quality(measured: Measured) -> CriterionTests:
    """Return the tests of the difference of the metric on test data, other − first.

    A pair in which a side has no value cannot be in a mean: while there is one, the other side
    is not shown to be the better, and no difference is not shown at all.
    """
    metric, margin, seeds = measured.metric, measured.margin, len(measured.runs)
    name = f"test {metric.name}"
    bound = f"{_amount(margin, metric)} of {name}"
    known = [(a, b) for a, b in measured.values if _is_known(a) and _is_known(b)]
    absent = [sum(not _is_known(pair[side]) for pair in measured.values) for side in (0, 1)]
    if not known:
        nothing = f"No pair of runs at the best settings has a {name} on both sides."
        return CriterionTests("quality", seeds, margin, bound, lambda _: nothing)
    step = smallest_step(value for pair in known for value in pair)
    mean = Mean.of([b - a for a, b in known], rounding=2 * rounding_variance(step))
    gain = metric.merit(mean.mean)
    # The side that would be better has runs without a value, which may be the worst.
    unsure = absent[1] if gain > 0 else absent[0]

    def told(interval: Interval | None) -> str:
        bounds = _bounds(interval, metric.change)
        lower = "" if metric.higher_is_better else "; lower is better"
        without = [
            f" {several(count, 'run')} {way} {'has' if count == 1 else 'have'} none."
            for count, way in zip(absent, (measured.with_first, measured.with_other), strict=True)
            if count
        ]
        return (
            f"{capital(measured.with_other)} the network's {name} differs by "
            f"{metric.change(mean.mean)}{metric.unit} from that {measured.with_first}{bounds}, "
            f"each at its own best setting{lower}.{''.join(without)}"
        )

    return CriterionTests(
        "quality",
        seeds,
        margin,
        bound,
        told,
        gain=gain,
        p_different=1.0 if unsure else mean.p_different(),
        p_within=1.0 if any(absent) else mean.p_within(margin),
        estimate=mean.mean,
        interval=_interval(mean),
        to_differ=lambda level: (
            None if unsure else _in_all(mean.seeds_to_differ(level), mean, seeds)
        ),
        to_agree=lambda level: None if any(absent) else mean.seeds_to_lie_within(margin, level),
    )


def about(value: float) -> str:
    """Return a number to two digits.

    >>> about(13.4), about(1234.5), about(0.987)
    ('13', '1,200', '0.99')
    """
    return f"{float(f'{value:.2g}'):,g}"


def capital(text: str) -> str:
    """Return a text that begins a sentence."""
    return text[:1].upper() + text[1:]


def _bounds(interval: Interval | None, written: Callable[[float], str]) -> str:
    if interval is None:
        return ""
    low, high = written(interval.low), written(interval.high)
    return f" ({100 * interval.confidence:.3g}% interval: {low} to {high})"


def _is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _amount(margin: float, metric: Metric) -> str:
    if metric.percent:
        return f"{100 * margin:.3g} {'point' if math.isclose(margin, 0.01) else 'points'}"
    return f"{margin:.2g}"


def _interval(
    mean: Mean, unit: Callable[[float], float] = float
) -> Callable[[float], Interval | None]:
    def of(confidence: float) -> Interval | None:
        low, high = mean.interval(confidence)
        return Interval(unit(low), unit(high), confidence) if math.isfinite(low) else None

    return of


def _exponential(logarithm: float) -> float:
    return math.exp(min(logarithm, 700.0))  # beyond is no float


def _in_all(enough: int | None, mean: Mean, seeds: int) -> int | None:
    """Return how many seeds give `enough` values, if as many of them have one as in this mean."""
    return None if enough is None else math.ceil(enough * seeds / mean.count)


def _rounding(run: Arrival) -> float:
    """Return the variance of the logarithm of a step that lies after the measurement before."""
    return rounding_variance((run.step - run.before) / run.step) if run.reached else 0.0


def _lopsided(ratio: PairedRatio) -> bool:
    """Return whether most pairs have one side only at the target, and always the same one."""
    one_sided = ratio.only_batch_norm, ratio.only_plain
    return min(one_sided) == 0 and sum(one_sided) > ratio.both


def _absences(measured: Measured, pairs: Sequence[tuple[Arrival, Arrival]]) -> str:
    """Return sentences on the runs that never get to the target, empty where all do."""
    never = [sum(not pair[side].reached for pair in pairs) for side in (1, 0)]
    neither = len(measured.arrivals) - len(pairs)
    told = ""
    if any(never):
        longest = max(run.step for pair in pairs for run in pair)
        told += (
            f" A run that never gets there counts as {longest:,} steps: {never[0]} "
            f"{measured.with_other}, {never[1]} {measured.with_first}."
        )
    if neither:
        told += f" {several(neither, 'pair')} in which neither gets there "
        told += "is left out." if neither == 1 else "are left out."
    return told
