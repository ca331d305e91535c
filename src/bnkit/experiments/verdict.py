"""`Verdict`: what the seeds show of one side against the first, by criteria fixed in advance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from bnkit.experiments.criteria import (
    Criterion,
    CriterionTests,
    Measured,
    capital,
    quality,
    reliability,
    speed,
)
from bnkit.experiments.statistics import LEAST_SEEDS, MOST_SEEDS, PairedRatio, holm
from bnkit.tables import several

Word = Literal["better", "worse", "no difference", "not shown"]
Answer = Literal["helps", "hurts", "mixed", "no difference", "not shown", "nothing to compare"]

# Over all findings and looks, the probability that a difference is claimed that is none, and that
# none is claimed where there is one as large as a margin.
LEVEL = 0.05
LOOKS = (3, 5, 8, 12, 20)  # the numbers of seeds at which `seeds="auto"` looks


@dataclass(frozen=True)
class Finding:
    """What the seeds show of one criterion: a word, a sentence, and the numbers behind them.

    `estimate` is of reliability how much larger the share of runs that train is on the other side,
    of speed how many times as many steps the first takes to the target, and of quality by how much
    the metric of the other differs. `low` and `high` bound it with this `confidence`: the word
    rests on them, but that of reliability on `p_value`. A difference below `margin` counts as
    none, in words `bound`. By the spread seen `to_differ` seeds in all would be enough to show a
    difference, and `to_agree` that it is below the margin; None where 1,000 would not.
    """

    criterion: Criterion
    word: Word
    sentence: str
    estimate: float | None
    low: float | None
    high: float | None
    confidence: float
    margin: float
    p_value: float
    bound: str
    to_differ: int | None
    to_agree: int | None


@dataclass(frozen=True)
class Verdict:
    """The answer on one side against the first, and the three findings that it follows from.

    1. Reliability: whether more runs of a seed train, by an exact sign test over the seeds.
    2. Speed: how many times as many steps to the target, each side at its own best setting, by a
       paired t-test of the logarithm. A run that never gets there counts with the length of the
       longest run; a pair in which neither does is left out.
    3. Quality: the paired difference of the metric on test data, each side at its own best
       setting, by a paired t-test.

    The unit of each test is the seed. A finding is "no difference" where two one-sided tests show
    it to be smaller than a margin: a quarter of the runs, 1.25 times the steps, and of quality a
    point of percent or else the margin that the comparison states. Levels are Holm's over all
    findings of a comparison, and divided over its looks.

    The other side "helps" if a finding is better and none worse, "hurts" in the reverse case;
    "mixed" is both. There is "no difference" larger than the margins if speed and quality show
    none, and as many runs train on both sides for each seed, or reliability shows none either.
    All else is "not shown": by the spread seen `more_seeds` would be enough for one of these; None
    where 1,000 would not.

    `steps` is the ratio of the pairs that both get to the target, with its 95% interval, and
    `trained` how many of the `pairs` of runs train, first and other. `slowdown` is the price, the
    time of a step of the other divided by that of the first; it decides nothing.
    """

    answer: Answer
    first: str
    other: str
    seeds: int
    pairs: int
    trained: tuple[int, int]
    findings: tuple[Finding, ...]
    steps: PairedRatio
    slowdown: float | None
    more_seeds: int | None
    sentences: tuple[str, ...]

    def finding(self, criterion: Criterion) -> Finding:
        """Return what the seeds show of a criterion; KeyError where nothing was compared."""
        return {finding.criterion: finding for finding in self.findings}[criterion]

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def judge(measured: Sequence[Measured], *, looks: int = 1) -> tuple[Verdict, ...]:
    """Return the verdict on each pair of sides, its level divided by the `looks` at it."""
    compared = [pair for pair in measured if pair.runs]
    tests = [test(pair) for pair in compared for test in (reliability, speed, quality)]
    findings = _findings(tests, LEVEL / looks)
    verdicts = {
        pair.other: _verdict(pair, findings[3 * n : 3 * n + 3]) for n, pair in enumerate(compared)
    }
    return tuple(verdicts.get(pair.other) or _nothing(pair) for pair in measured)


def words(
    p_different: ArrayLike, p_within: ArrayLike, gains: ArrayLike, level: float = LEVEL
) -> Any:
    """Return the word on each finding, of arrays (..., findings), at this level over all of them.

    `gains` are larger than 0 where the other side is better. A difference that is shown, and is
    shown to be smaller than the margin, is none.

    >>> words([0.001, 0.2, 0.3], [0.9, 0.01, 0.4], [1.0, 0.1, -1.0]).tolist()
    ['better', 'no difference', 'not shown']
    """
    different = np.asarray(p_different) <= holm(p_different, level)
    within = np.asarray(p_within) <= holm(p_within, level)
    sign = np.sign(gains)
    cases = [within, different & (sign > 0), different & (sign < 0)]
    return np.select(cases, ["no difference", "better", "worse"], "not shown")


def answer(found: Sequence[str], *, as_reliable: bool) -> Answer:
    """Return the answer that follows from the words on reliability, speed and quality.

    `as_reliable` is whether as many runs train on both sides for each seed.

    >>> answer(("not shown", "better", "no difference"), as_reliable=False)
    'helps'
    >>> answer(("not shown", "no difference", "no difference"), as_reliable=True)
    'no difference'
    """
    match "better" in found, "worse" in found:
        case True, True:
            return "mixed"
        case True, False:
            return "helps"
        case False, True:
            return "hurts"
    trains, *at_best = found
    same = as_reliable or trains == "no difference"
    return "no difference" if same and set(at_best) == {"no difference"} else "not shown"


def _findings(tests: Sequence[CriterionTests], level: float) -> list[Finding]:
    if not tests:
        return []
    p_different, p_within = [t.p_different for t in tests], [t.p_within for t in tests]
    found = words(p_different, p_within, [test.gain for test in tests], level).tolist()
    levels = zip(holm(p_different, level), holm(p_within, level), strict=True)
    return [
        # Two one-sided tests rest on the interval that leaves out their level at either end.
        _finding(
            test,
            word,
            confidence=1 - float(2 * within if word == "no difference" else different),
            least_level=level / len(tests),
        )
        for test, word, (different, within) in zip(tests, found, levels, strict=True)
    ]


def _finding(test: CriterionTests, word: Word, *, confidence: float, least_level: float) -> Finding:
    interval = test.interval(confidence)
    to_differ, to_agree = test.to_differ(least_level), test.to_agree(least_level)
    outcome = f"no difference larger than {test.bound}" if word == "no difference" else word
    advice = _advice(_least(to_differ, to_agree), test.seeds) if word == "not shown" else ""
    return Finding(
        criterion=test.criterion,
        word=word,
        sentence=f"{capital(test.criterion)}: {outcome}. {test.told(interval)}{advice}",
        estimate=test.estimate,
        low=interval and interval.low,
        high=interval and interval.high,
        confidence=confidence,
        margin=test.margin,
        p_value=test.p_different,
        bound=test.bound,
        to_differ=to_differ,
        to_agree=to_agree,
    )


def _verdict(pair: Measured, findings: Sequence[Finding]) -> Verdict:
    seeds, (trained_first, trained_other) = len(pair.runs), zip(*pair.trained, strict=True)
    as_reliable = trained_first == trained_other
    found = answer([finding.word for finding in findings], as_reliable=as_reliable)
    enough = _enough(findings, as_reliable=as_reliable)
    sentences = [_headline(pair, found, findings, enough), *(each.sentence for each in findings)]
    if pair.slowdown is not None:
        price = f"A training step takes {pair.slowdown:.2f} times as long {pair.other_than_first}."
        sentences.append(price)
    return Verdict(
        answer=found,
        first=pair.first,
        other=pair.other,
        seeds=seeds,
        pairs=sum(pair.runs),
        trained=(sum(trained_first), sum(trained_other)),
        findings=tuple(findings),
        steps=pair.ratio,
        slowdown=pair.slowdown,
        more_seeds=enough - seeds if found == "not shown" and enough and enough > seeds else None,
        sentences=tuple(sentences),
    )


def _nothing(pair: Measured) -> Verdict:
    sentences = ("There are no finished pairs of runs to compare.",)
    return Verdict(
        "nothing to compare", pair.first, pair.other, 0, 0, (0, 0), (), pair.ratio, None, None,
        sentences,
    )  # fmt: skip


def _enough(findings: Sequence[Finding], *, as_reliable: bool) -> int | None:
    """Return how many seeds in all would be enough for an answer, by the spread seen."""
    to_differ = [
        finding.to_differ
        for finding in findings
        # A difference that is shown to be smaller than the margin by then counts as none.
        if finding.word == "not shown"
        and _least(finding.to_differ, finding.to_agree) != finding.to_agree
    ]
    to_agree = [finding.to_agree for finding in (findings[1:] if as_reliable else findings)]
    known = [count for count in to_agree if count is not None]
    return _least(*to_differ, max(known) if len(known) == len(to_agree) else None)


def _headline(
    pair: Measured, found: Answer, findings: Sequence[Finding], enough: int | None
) -> str:
    other, plain = capital(pair.other), pair.first == "plain"
    match found:
        case "helps" | "hurts" if plain:
            return f"{other} {found} this network."
        case "helps" | "hurts":
            does = "better" if found == "helps" else "worse"
            return f"{other} does {does} than {pair.first} in this network."
        case "mixed" if plain:
            return f"{other} helps this network in one way and hurts it in another."
        case "mixed":
            return f"{other} does better than {pair.first} in one way and worse in another."
        case "no difference":
            margins = " or ".join(finding.bound for finding in findings[1:])
            instead = "" if plain else f" instead of {pair.first}"
            return f"{other}{instead} makes no difference to this network larger than {margins}."
    helps = "helps this network" if plain else f"does better than {pair.first} in this network"
    seeds = len(pair.runs)
    advice = _advice(enough, seeds) or (
        f" Run at least {LEAST_SEEDS} seeds."
        if seeds < LEAST_SEEDS
        else f" By the spread seen, {MOST_SEEDS:,} seeds would not be enough."
    )
    return f"Not shown: whether {pair.other} {helps}.{advice}"


def _advice(enough: int | None, seeds: int) -> str:
    if enough is None or enough <= seeds:
        return ""
    return f" By the spread seen, {several(enough - seeds, 'more seed')} would be enough."


def _least(*counts: int | None) -> int | None:
    return min((count for count in counts if count is not None), default=None)
