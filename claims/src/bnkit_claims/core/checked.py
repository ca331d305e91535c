"""`Checked`: claims and what was found for each, as a table and as plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bnkit.tables import text_table
from bnkit_claims.core.claim import Source
from bnkit_claims.core.evidence import Evidence
from bnkit_claims.core.restoring import restored


@dataclass(frozen=True)
class CheckedClaim:
    """A claim, how it was measured, and what came of it; it explains itself without its code.

    `evidence` is None where it could not be measured (for `reason`) or was not, being interrupted.
    `command` repeats it; `seconds` is how long it took, results of earlier runs not counted.
    """

    name: str
    statement: str
    sources: tuple[Source, ...]
    measurement: str
    criteria: str
    settings: Mapping[str, Any]
    command: str
    evidence: Evidence | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """The verdict in words; "failed" or "not run" without evidence."""
        if self.evidence is None:
            return "failed" if self.reason else "not run"
        return self.evidence.verdict

    @property
    def measured(self) -> str:
        """What was measured, in a sentence, or why it could not be."""
        return self.reason if self.evidence is None else self.evidence.headline

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain lists, numbers and strings."""
        return {**asdict(self), "evidence": self.evidence and self.evidence.to_json()}


@dataclass(frozen=True)
class Checked:
    """Claims in their order, and the environment in which they were measured."""

    environment: Mapping[str, str]
    claims: tuple[CheckedClaim, ...] = field(default=())

    def __str__(self) -> str:
        headers = ("claim", "who says it", "measured", "verdict")
        return text_table(headers, map(_row, self.claims), width=120)

    @property
    def failed(self) -> tuple[CheckedClaim, ...]:
        """The claims that could not be measured."""
        return tuple(claim for claim in self.claims if claim.verdict == "failed")

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain lists, numbers and strings."""
        claims = [claim.to_json() for claim in self.claims]
        return {"environment": dict(self.environment), "claims": claims}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Checked":
        """Return what `to_json` wrote down.

        >>> claim = CheckedClaim("a", "A holds.", (), "measured", "judged", {}, "bnkit claims a",
        ...                      Evidence("3 times.", ()))
        >>> Checked.from_json(Checked({}, (claim,)).to_json()).claims[0] == claim
        True
        """
        claims = tuple(map(_claim, fields["claims"]))
        return cls(fields["environment"], claims)


def _claim(fields: Mapping[str, Any]) -> CheckedClaim:
    evidence = fields["evidence"] and Evidence.from_json(fields["evidence"])
    sources = tuple(restored(Source, source) for source in fields["sources"])
    return CheckedClaim(**{**fields, "evidence": evidence, "sources": sources})


def _row(claim: CheckedClaim) -> tuple[str, str, str, str]:
    says = "; ".join(source.who for source in claim.sources)
    return claim.name, says, claim.measured, claim.verdict
