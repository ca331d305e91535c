"""`Verdict`: one plain answer, by criteria that were written down before any run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bnkit.experiments.metrics import ACCURACY, Metric
from bnkit.experiments.statistics import (
    PairedDifference,
    PairedRatio,
    paired_difference,
    paired_ratio,
    sign_test,
)

Answer = Literal["helps", "hurts", "mixed", "no clear difference", "nothing to compare"]

LEVEL = 0.05  # of the sign test, as of the 95% intervals


@dataclass(frozen=True)
class Verdict:
    """The answer, and the three measurements that it follows from.

    1. Reliability: over all pairs, those in which only one side trains (`only_batch_norm`,
       `only_plain`), by an exact sign test at 5% (`p_value`).
    2. Speed: the paired ratio of `steps` to the target, each side at its own best setting; it
       counts where its 95% interval excludes 1.
    3. Quality: the paired difference of the `metric` on test data, each side at its own best
       setting; it counts where its 95% interval excludes 0.

    Batch norm "helps" if one of them speaks for it and none against, "hurts" in the reverse case;
    "mixed" is both, "no clear difference" neither. `slowdown` is the price: the time of a step
    with batch norm divided by that without; it decides nothing.
    """

    answer: Answer
    pairs: int
    trained_plain: int
    trained_batch_norm: int
    only_batch_norm: int
    only_plain: int
    p_value: float
    steps: PairedRatio
    quality: PairedDifference
    slowdown: float | None
    metric: Metric = ACCURACY

    @property
    def sentences(self) -> tuple[str, ...]:
        """The answer and its reasons in plain language, one sentence each."""
        if self.answer == "nothing to compare":
            return (_ANSWERS[self.answer],)
        return (
            _ANSWERS[self.answer],
            self._reliability(),
            self._speed(),
            self._quality(),
            *([] if self.slowdown is None else [self._price()]),
        )

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def _reliability(self) -> str:
        certainty = "clear" if self.p_value < LEVEL else "not clear"
        return (
            f"With batch norm {self.trained_batch_norm} of {self.pairs} runs train, without it "
            f"{self.trained_plain} ({certainty}: sign test p = {self.p_value:.2g})."
        )

    def _speed(self) -> str:
        if self.steps.ratio is None:
            return "At their best settings no pair of runs reaches the target on both sides."
        return (
            f"Each at its own best setting, the plain network takes {self.steps} times the steps "
            f"to the target."
        )

    def _quality(self) -> str:
        name = f"test {self.metric.name}"
        if self.quality.difference is None:
            return f"No pair of runs has a {name} on both sides."
        gap, low, high = (
            "" if value is None else self.metric.change(value)
            for value in (self.quality.difference, self.quality.low, self.quality.high)
        )
        interval = f" ({low} to {high})" if low else ""
        return f"Its {name} differs by {gap}{self.metric.unit} with batch norm{interval}."

    def _price(self) -> str:
        return f"A training step takes {self.slowdown:.2f} times as long with batch norm."


_ANSWERS: dict[Answer, str] = {
    "helps": "Batch norm helps this network.",
    "hurts": "Batch norm hurts this network.",
    "mixed": "Batch norm helps this network in one way and hurts it in another.",
    "no clear difference": "Batch norm makes no clear difference to this network.",
    "nothing to compare": "There are no finished pairs of runs to compare.",
}


def judge(
    *,
    successes: Sequence[tuple[bool, bool]],
    steps: Sequence[tuple[float | None, float | None]],
    metrics: Sequence[tuple[float | None, float | None]],
    slowdown: float | None,
    metric: Metric = ACCURACY,
) -> Verdict:
    """Return the verdict on paired measurements of (plain, batch norm)."""
    only_batch_norm = sum(b and not p for p, b in successes)
    only_plain = sum(p and not b for p, b in successes)
    p_value = sign_test(only_batch_norm, only_plain)
    ratio = paired_ratio(steps)
    measured = [(p, b) for p, b in metrics if p is not None and b is not None]
    quality = paired_difference(measured)
    # Each measurement votes +1, -1, or 0 where chance explains it.
    votes = (
        _vote(only_batch_norm - only_plain, counts=p_value < LEVEL),
        _vote((ratio.ratio or 1) - 1, counts=ratio.excludes_one),
        _vote(metric.merit(quality.difference or 0), counts=quality.excludes_zero),
    )
    return Verdict(
        answer=_answer(votes) if successes else "nothing to compare",
        pairs=len(successes),
        trained_plain=sum(p for p, _ in successes),
        trained_batch_norm=sum(b for _, b in successes),
        only_batch_norm=only_batch_norm,
        only_plain=only_plain,
        p_value=p_value,
        steps=ratio,
        quality=quality,
        slowdown=slowdown,
        metric=metric,
    )


def _vote(amount: float, *, counts: bool) -> int:
    return (amount > 0) - (amount < 0) if counts else 0


def _answer(votes: Sequence[int]) -> Answer:
    match max(votes) > 0, min(votes) < 0:
        case True, True:
            return "mixed"
        case True, False:
            return "helps"
        case False, True:
            return "hurts"
        case _:
            return "no clear difference"
