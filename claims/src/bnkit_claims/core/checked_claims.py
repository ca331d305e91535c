"""`check_claims`: measure claims one after another, each over all cores, and collect them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bnkit.experiments.provenance import environment
from bnkit.tables import text_table
from bnkit_claims.core.cases import InProcesses, Repetition
from bnkit_claims.core.claim import Claim, ClaimSettings, Source
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


class ClaimsInterrupted(KeyboardInterrupt):
    """Ctrl-C while claims are measured; `checked` holds what had finished, the rest as not run."""

    def __init__(self, checked: Checked) -> None:
        super().__init__()
        self.checked = checked


def check_claims(claims: Sequence[Claim[Any]], data: str, how: Repetition) -> Checked:
    """Return the verdict on each claim, measured on a data set ("toy" is a few seconds of digits).

    The cases of each claim are measured as `how` says. A claim that cannot be measured is recorded
    as failed with its reason, and the others go on. Raises ClaimsInterrupted, with what had
    finished, on Ctrl-C.
    """
    planned = [
        (claim, settings, _unmeasured(claim, settings, data))
        for claim in claims
        for settings in [claim.settings(data, **how.options)]
    ]
    found = [unmeasured for _, _, unmeasured in planned]
    try:
        for place, (claim, settings, unmeasured) in enumerate(planned):
            began = time.perf_counter()
            try:
                evidence = claim.run(settings, InProcesses(replace(how, title=claim.name)))
            except (RuntimeError, ValueError, ChildProcessError) as error:
                found[place] = replace(unmeasured, reason=str(error))
            else:
                seconds = time.perf_counter() - began
                found[place] = replace(unmeasured, evidence=evidence, seconds=seconds)
    except KeyboardInterrupt:
        raise ClaimsInterrupted(Checked(environment(), tuple(found))) from None
    return Checked(environment(), tuple(found))


def _unmeasured(claim: Claim[Any], settings: ClaimSettings, data: str) -> CheckedClaim:
    return CheckedClaim(
        name=claim.name,
        statement=claim.statement,
        sources=claim.sources,
        measurement=claim.measurement,
        criteria=claim.criteria,
        settings={**settings.decisive, "seeds": settings.seeds},
        command=f"bnkit claims {claim.name} --data {data} --seeds {settings.seeds}",
    )
