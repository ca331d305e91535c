"""`Case`: one measurement of a claim, kept under a name that follows from all that decides it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bnkit.experiments import provenance
from bnkit.source_code import fingerprint_within_module
from bnkit_claims.core.in_turn import in_turn


@dataclass(frozen=True)
class CaseResult:
    """What one case gave: `found`, or the `reason` why it failed."""

    key: str
    outcome: Literal["finished", "failed"]
    found: Any = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain lists, numbers and strings."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "CaseResult":
        """Return the record that `to_json` wrote down."""
        return cls(**fields)


@dataclass(frozen=True)
class Case:
    """A measuring function with its arguments; `key` is a fingerprint of it and names its file."""

    key: str
    code: str
    measure: Callable[[Any, Any], Any]
    settings: Any
    case: Any

    def run(self) -> CaseResult:
        """Return what is found; an error is a result too: a failed case with its reason."""
        try:
            (found,) = in_turn(self.measure, self.settings, [self.case])
        except Exception as error:  # noqa: BLE001  it may be anything
            return self.failed(f"{type(error).__name__}: {error}")
        return CaseResult(self.key, "finished", found)

    def failed(self, reason: str) -> CaseResult:
        """Return the record that this case could not be measured."""
        return CaseResult(self.key, "failed", reason=reason)


def case_of(measure: Callable[[Any, Any], Any], settings: Any, case: Any) -> Case:
    """Return the case; its key changes with the settings, the case, and the code that measures."""
    code = fingerprint_within_module(measure)
    decides = {
        **provenance.versions(),
        "code": code,
        "settings": settings.decisive,
        "case": case,
    }
    return Case(provenance.fingerprint(decides), code, measure, settings, case)
