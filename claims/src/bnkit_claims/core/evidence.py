"""`Evidence`: what was measured for a claim, and the verdict that follows from it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from bnkit_claims.core.charts import ChartRecord, chart_from_json

Verdict = Literal["holds", "holds in part", "does not hold", "not shown"]


@dataclass(frozen=True)
class Part:
    """One thing that a claim says, the figures that were measured for it, and what they show.

    `shown` is True where they show it, False where they refute it, None where the runs are too few
    to tell.
    """

    what: str
    figures: str
    shown: bool | None

    @property
    def verdict(self) -> Verdict:
        """The verdict on this part alone.

        >>> Part("less time with relu", "4.33 (3.48 to 5.40) times", True).verdict
        'holds'
        """
        return word_for(self.shown)


@dataclass(frozen=True)
class Beside:
    """What was measured beside the parts of a claim, and does not count for its verdict."""

    what: str
    figures: str


@dataclass(frozen=True)
class Evidence:
    """What was measured for a claim: in a sentence, part by part, in charts and row by row.

    `headline` is the sentence that people read first, with the one or two figures that matter
    most. The verdict follows from `parts` alone. `notes` are sentences on what the parts do not
    tell, such as that a claim comes out against its sources. `details` are the numbers behind, for
    tables and other programs.
    """

    headline: str
    parts: tuple[Part, ...]
    beside: tuple[Beside, ...] = ()
    notes: tuple[str, ...] = ()
    figures: tuple[ChartRecord, ...] = ()
    details: tuple[Mapping[str, Any], ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict on the claim (see `together`).

        >>> relu, sigmoid = Part("relu", "2.1 times", True), Part("sigmoid", "0.9 times", False)
        >>> Evidence("It takes 2.1 times the steps with relu.", (relu, sigmoid)).verdict
        'holds in part'
        """
        return together(part.shown for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Return the evidence, with its verdict, as plain lists, numbers and strings."""
        return {"verdict": self.verdict, **asdict(self)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Evidence":
        """Return the evidence that `to_json` wrote down.

        >>> evidence = Evidence("3 times.", (Part("fewer steps", "3 times", True),))
        >>> Evidence.from_json(evidence.to_json()) == evidence
        True
        """
        return cls(
            headline=fields["headline"],
            parts=tuple(Part(**part) for part in fields["parts"]),
            beside=tuple(Beside(**each) for each in fields["beside"]),
            notes=tuple(fields["notes"]),
            figures=tuple(map(chart_from_json, fields["figures"])),
            details=tuple(fields["details"]),
        )


class Interval(Protocol):
    """What was estimated from pairs, such as a `PairedRatio`: its 95% interval, if there is one."""

    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...


def beyond(found: Interval, *, bar: float, negligible: float) -> bool | None:
    """Return whether an interval shows an effect: True, False, or None where it cannot tell.

    The effect is shown where the whole interval lies above `bar`, and refuted where it lies below
    `negligible` (at least `bar`), an effect too small to matter. Without an interval (too few
    pairs) nothing is shown.

    >>> from bnkit.experiments.statistics import paired_ratio
    >>> large, small = paired_ratio([(3, 1), (4, 1), (3, 1)]), paired_ratio([(1, 1)] * 3)
    >>> beyond(large, bar=1, negligible=1.1), beyond(small, bar=1, negligible=1.1)
    (True, False)
    >>> beyond(paired_ratio([(1, 1), (4, 1), (1, 2)]), bar=1, negligible=1.1) is None
    True
    """
    if found.low is None or found.high is None:
        return None
    if found.low > bar:
        return True
    return False if found.high < negligible else None


def above_one(ratio: Interval) -> bool | None:
    """Return whether a ratio is shown to lie above 1; a gain of less than a tenth refutes it."""
    return beyond(ratio, bar=1, negligible=1.1)


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
