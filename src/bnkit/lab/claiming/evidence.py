"""`Evidence`: what was measured for a claim, and the verdict that follows from it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from bnkit.lab.claiming.figures import Figure, figure_from_json

Verdict = Literal["holds", "holds in part", "does not hold", "not shown"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Evidence:
    """The verdict on a claim, the figures that it rests on in one or two sentences, and charts.

    `verdict` is "not shown" where the runs are too few to tell. `where` says where a claim holds
    and where it does not, and where it comes out against its sources. `details` are the numbers
    behind, row by row, for tables and other programs.
    """

    verdict: Verdict
    measured: str
    where: str = ""
    figures: tuple[Figure, ...] = ()
    details: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"`verdict` is {self.verdict!r}: choose from {VERDICTS}")
        if self.verdict == "holds in part" and not self.where:
            raise ValueError("`where` is empty, and a claim that holds in part holds somewhere")

    def to_json(self) -> dict[str, Any]:
        """Return the evidence as plain lists, numbers and strings."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Evidence":
        """Return the evidence that `to_json` wrote down.

        >>> evidence = Evidence("holds", "3 times as fast", details=({"seed": 0, "ratio": 3.0},))
        >>> Evidence.from_json(evidence.to_json()) == evidence
        True
        """
        figures = tuple(map(figure_from_json, fields["figures"]))
        return cls(**{**fields, "figures": figures, "details": tuple(fields["details"])})
