"""What cases found, paired by seed: plain beside batch norm."""

from collections.abc import Mapping, Sequence
from typing import Any

from bnkit.experiments.statistics import (
    PairedDifference,
    PairedRatio,
    paired_difference,
    paired_ratio,
)
from bnkit_claims.core.evidence import above_one

Records = Sequence[Mapping[str, Any]]


def select(found: Records, **fields: Any) -> list[Mapping[str, Any]]:
    """Return what was found in the cases with these fields.

    >>> select([{"seed": 0, "loss": 1.0}, {"seed": 1, "loss": 2.0}], seed=1)
    [{'seed': 1, 'loss': 2.0}]
    """
    return [each for each in found if all(each[name] == fields[name] for name in fields)]


def ratio_of(
    found: Records, what: str, *, by: str = "side", over: str = "plain", under: str = "batch norm"
) -> PairedRatio:
    """Return the paired ratio of `what`, plain ÷ batch norm, over the seeds.

    >>> rows = [{"side": "plain", "seed": 0, "loss": 3.0}]
    >>> rows += [{"side": "batch norm", "seed": 0, "loss": 2.0}]
    >>> ratio_of(rows, "loss").ratio
    1.5
    """
    values = {(each[by], each["seed"]): each[what] for each in found}
    return paired_ratio((values[over, seed], values[under, seed]) for seed in _seeds(found))


def difference_of(found: Records, what: str) -> PairedDifference:
    """Return the paired difference of `what`, batch norm − plain, over the seeds that have both.

    >>> rows = [{"side": "plain", "seed": 0, "loss": 3.0}]
    >>> difference_of([*rows, {"side": "batch norm", "seed": 0, "loss": 2.0}], "loss").difference
    -1.0
    """
    values = {(each["side"], each["seed"]): each[what] for each in found}
    pairs = [(values["plain", seed], values["batch norm", seed]) for seed in _seeds(found)]
    return paired_difference((p, b) for p, b in pairs if p is not None and b is not None)


def above_one_or_alone(ratio: PairedRatio) -> bool | None:
    """Return whether a ratio is shown to lie above 1, as `above_one` does.

    It is shown, too, where the plain side never has a value, and batch norm has in three pairs.

    >>> above_one_or_alone(paired_ratio([(None, 1.0)] * 3))
    True
    """
    if ratio.only_batch_norm >= 3 and not ratio.both and not ratio.only_plain:
        return True
    return above_one(ratio)


def points(difference: PairedDifference) -> str:
    """Return the mean difference in percentage points, with its interval where there is one.

    >>> from bnkit.experiments.statistics import paired_difference
    >>> points(paired_difference([(0.5, 0.75), (0.5, 0.75), (0.25, 0.5)]))
    '+25.00 (+25.00 to +25.00) points'
    >>> points(paired_difference([(0.5, 0.75)]))
    '+25.00 points'
    """
    if difference.difference is None:
        return "an unknown number of points"
    return f"{difference.times(100):+z.2f} points"


def rounded(ratio: float | None) -> str:
    """Return a ratio to two digits, as it is said in a headline.

    >>> rounded(15.16), rounded(7.13), rounded(0.476), rounded(None)
    ('15', '7.1', '0.48', 'an unknown number of')
    """
    return "an unknown number of" if ratio is None else f"{float(f'{ratio:.2g}'):g}"


def _seeds(found: Records) -> list[int]:
    return sorted({each["seed"] for each in found})
