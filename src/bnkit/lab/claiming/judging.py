"""From parts of evidence to a verdict: by bars that are written down before any run."""

from collections.abc import Mapping
from typing import NamedTuple

from bnkit.lab.claiming.evidence import Verdict


class Judgement(NamedTuple):
    """A verdict, and where it holds and where it does not (empty where it is the same for all)."""

    verdict: Verdict
    where: str


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


def judgement(parts: Mapping[str, bool | None]) -> Judgement:
    """Return the verdict on a claim from the parts that it consists of.

    True is a part that is shown, False one that is refuted, None one that the runs cannot tell.

    >>> judgement({"sigmoid": True, "ReLU": False})
    Judgement(verdict='holds in part', where='holds for sigmoid; does not hold for ReLU')
    >>> judgement({"sigmoid": True, "ReLU": True})
    Judgement(verdict='holds', where='')
    """
    shown = set(parts.values())
    if len(shown) == 1:
        return Judgement(_ALONE[shown.pop()], "")
    named = {
        word: [part for part, found in parts.items() if found is kind] for kind, word in _WORDS
    }
    where = "; ".join(f"{word} for {', '.join(names)}" for word, names in named.items() if names)
    return Judgement("holds in part" if True in shown else "does not hold", where)


_ALONE: dict[bool | None, Verdict] = {True: "holds", False: "does not hold", None: "not shown"}
_WORDS = ((True, "holds"), (False, "does not hold"), (None, "is not shown"))
