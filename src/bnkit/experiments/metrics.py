"""`Metric`: what a comparison judges, which way is better, and how it is written."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """What is measured on held-out data and judged.

    A metric with `percent` is a share of 1: it is written in percent, its differences in points.
    """

    name: str
    higher_is_better: bool = True
    percent: bool = False

    def reaches(self, value: float | None, target: float) -> bool:
        """Return whether the value is at the target or better; None never is.

        >>> ACCURACY.reaches(0.9, 0.9), Metric("mse", higher_is_better=False).reaches(0.3, 0.1)
        (True, False)
        """
        return value is not None and self.merit(value) >= self.merit(target)

    def merit(self, value: float) -> float:
        """Return a number that is the larger the better the value is."""
        return value if self.higher_is_better else -value

    def written(self, value: float) -> str:
        """Return a measured value as text.

        >>> ACCURACY.written(0.93124), Metric("mse").written(0.0123456)
        ('93.1%', '0.01235')
        """
        return f"{100 * value:.1f}%" if self.percent else f"{value:.4g}"

    def chosen(self, value: float) -> str:
        """Return a value that was chosen, such as a target, as short as it is.

        >>> ACCURACY.chosen(0.9), Metric("mse").chosen(0.05)
        ('90%', '0.05')
        """
        return f"{100 * value:g}%" if self.percent else f"{value:g}"

    def change(self, difference: float) -> str:
        """Return a difference without its unit, signed.

        >>> ACCURACY.change(0.0123), Metric("mse").change(-0.0123)
        ('+1.23', '-0.0123')
        """
        return f"{100 * difference:+.2f}" if self.percent else f"{difference:+.3g}"

    @property
    def unit(self) -> str:
        """What follows a difference: " points" of percent, or nothing."""
        return " points" if self.percent else ""

    @property
    def to_reach(self) -> str:
        """What it is for a value to reach a target: "or above" or "or below" it."""
        return "or above" if self.higher_is_better else "or below"

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Metric":
        """Return the metric that `dataclasses.asdict` wrote down."""
        return cls(**fields)


ACCURACY = Metric("accuracy", percent=True)

# A word of a metric's name that says which way is better.
_HIGHER = frozenset(
    "acc accuracy ap auc auprc auroc bleu dice f1 iou jaccard kappa map mcc miou precision psnr r2 "
    "recall return returns reward rewards rouge score spearman pearson ssim top1 top5".split()
)
_LOWER = frozenset(
    "bpc cer cost distance divergence err error fid kl kid loss mae mape mse nll perplexity ppl "
    "regret rmse wer".split()
)


def metric_named(name: str, *, higher_is_better: bool | None) -> Metric:
    """Return the metric of this name, written in the unit in which it is measured.

    Which way is better follows from a word of it, unless `higher_is_better` says it. ValueError
    where neither does.

    >>> metric_named("val_loss", higher_is_better=None)
    Metric(name='val_loss', higher_is_better=False, percent=False)
    """
    if higher_is_better is None:
        words = re.split(r"[^a-z0-9]+", name.lower())
        higher, lower = not _HIGHER.isdisjoint(words), not _LOWER.isdisjoint(words)
        if higher == lower:
            raise ValueError(
                f"`metric` is {name!r}, of which it is not known whether more is better: pass "
                f"higher_is_better=True or False"
            )
        higher_is_better = higher
    return Metric(name, higher_is_better)
