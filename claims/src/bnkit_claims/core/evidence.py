"""`Evidence`: what was measured for a claim, and the verdict that follows from it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bnkit_claims.core.figures import Figure, figure_from_json
from bnkit_claims.core.judging import Verdict, together, word_for


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
    figures: tuple[Figure, ...] = ()
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
            figures=tuple(map(figure_from_json, fields["figures"])),
            details=tuple(fields["details"]),
        )
