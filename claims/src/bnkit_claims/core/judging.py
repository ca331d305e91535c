"""From parts of evidence to a verdict: by bars that are written down before any run."""

from collections.abc import Iterable
from typing import Literal

Verdict = Literal["holds", "holds in part", "does not hold", "not shown"]


def beyond(low: float | None, high: float | None, *, bar: float, negligible: float) -> bool | None:
    """Return whether an interval shows an effect: True, False, or None where it cannot tell.

    It is shown where the whole interval lies above `bar`, and refuted where it lies below
    `negligible` (at least `bar`), an effect that nobody would care for. Without an interval (too
    few pairs) nothing is shown.

    >>> beyond(1.5, 4.0, bar=1, negligible=1.1), beyond(0.9, 1.05, bar=1, negligible=1.1)
    (True, False)
    >>> beyond(0.9, 4.0, bar=1, negligible=1.1) is None
    True
    """
    if low is None or high is None:
        return None
    if low > bar:
        return True
    return False if high < negligible else None


def together(shown: Iterable[bool | None]) -> Verdict:
    """Return the verdict on a claim from what is shown of its parts.

    True is a part that is shown, False one that is refuted, None one that the runs cannot tell. A
    claim without parts is not shown.

    >>> together([True, True]), together([True, None]), together([False, None]), together([])
    ('holds', 'holds in part', 'does not hold', 'not shown')
    """
    found = set(shown)
    if len(found) == 1:
        return word_for(found.pop())
    if not found:
        return "not shown"
    return "holds in part" if True in found else "does not hold"


def word_for(shown: bool | None) -> Verdict:
    """Return the verdict on one part.

    >>> word_for(None)
    'not shown'
    """
    return "not shown" if shown is None else "holds" if shown else "does not hold"
