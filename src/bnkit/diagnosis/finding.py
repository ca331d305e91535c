"""`Finding`: one trouble of a model: where it is, how it was measured, and how to fix it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from bnkit.deprecation import warn_of
from bnkit.diagnosis.fix import Fix

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # worst first


@dataclass(frozen=True, eq=False)
class Finding:
    """One trouble of a model, found by the rule of this slug in the layers of these paths.

    An "error" breaks training or makes its results wrong, a "warning" harms them, "info" is worth
    knowing. `measured` names what was measured, with its numbers. `why` says what the trouble is,
    `fix` what to do. `automatic_fix(model)` does it: it returns a fixed copy of the diagnosed
    model, or of one that other fixes have changed; it is None where a person has to decide.
    `causes` are the findings that this one follows from.

    >>> print(Finding("on-logits", "warning", ("fc",), {"classes": 10}, "Why.", "Remove it."))
    warning on-logits at fc (classes: 10): Why. Remove it.
    """

    rule: str
    severity: Severity
    layers: tuple[str, ...]
    measured: Mapping[str, Any]
    why: str
    fix: str
    automatic_fix: Fix | None = field(default=None, repr=False)
    causes: "tuple[Finding, ...]" = ()

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"`severity` is {self.severity!r}: choose from {SEVERITIES}")

    @property
    def mend(self) -> Fix | None:
        """The old name of `automatic_fix`."""
        warn_of("Finding.mend", "Finding.automatic_fix")
        return self.automatic_fix

    @property
    def place(self) -> str:
        """The paths of the layers, "(the model)" for the model itself."""
        return ", ".join(path or "(the model)" for path in self.layers) or "(the model)"

    @property
    def figures(self) -> str:
        """What was measured, in words: each number with three digits."""
        return ", ".join(f"{name}: {_in_words(value)}" for name, value in self.measured.items())

    def to_json(self) -> dict[str, Any]:
        """Return the finding in plain data; causes by their rule and layers."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "layers": list(self.layers),
            "measured": dict(self.measured),
            "why": self.why,
            "fix": self.fix,
            "fixable": self.automatic_fix is not None,
            "mendable": self.automatic_fix is not None,  # its name in 0.1, for one more release
            "causes": [{"rule": c.rule, "layers": list(c.layers)} for c in self.causes],
        }

    def __str__(self) -> str:
        measured = f" ({self.figures})" if self.measured else ""
        return f"{self.severity} {self.rule} at {self.place}{measured}: {self.why} {self.fix}"


def _in_words(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
