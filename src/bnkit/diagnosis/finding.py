"""`Finding`: one trouble of a model, its measurement and its fix; and findings in `Group`s."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from bnkit.deprecation import warn_of

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
    automatic_fix: Callable[[Any], Any] | None = field(default=None, repr=False)
    causes: "tuple[Finding, ...]" = ()

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"`severity` is {self.severity!r}: choose from {SEVERITIES}")

    @property
    def mend(self) -> Callable[[Any], Any] | None:
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


# Groups


@dataclass(frozen=True, eq=False)
class Group:
    """Findings of one rule that say the same of several layers; `below` are what follows from them.

    They have rule, severity and fix in common.
    """

    findings: tuple[Finding, ...]
    below: "tuple[Group, ...]" = ()

    @property
    def first(self) -> Finding:
        """The first finding, which speaks for all."""
        return self.findings[0]

    @property
    def worst(self) -> int:
        """The place in SEVERITIES of the worst finding, here or below."""
        return min(SEVERITIES.index(group.first.severity) for _, group in self.walk())

    def walk(self, depth: int = 0) -> Iterator[tuple[int, "Group"]]:
        """Yield this group and all below it, each with its depth."""
        yield depth, self
        for group in self.below:
            yield from group.walk(depth + 1)


def groups_of(findings: Sequence[Finding]) -> tuple[Group, ...]:
    """Return the findings in groups, each finding once: first what is worst, here or below.

    A finding stands below the first group that holds one of its causes.

    >>> causes = [Finding("a", "error", (name,), {}, "", "") for name in ("x", "y")]
    >>> others = [Finding("b", "info", each.layers, {}, "", "", causes=(each,)) for each in causes]
    >>> (group,) = groups_of([*causes, *others])
    >>> len(group.findings), len(group.below[0].findings)
    (2, 2)
    """
    known = {id(finding) for finding in findings}
    shown: set[int] = set()

    def grouped(members: Sequence[Finding]) -> tuple[Group, ...]:
        shown.update(map(id, members))
        kinds: dict[tuple[str, str, str], list[Finding]] = {}
        for each in members:
            kinds.setdefault((each.rule, each.severity, each.fix), []).append(each)
        groups = [Group(tuple(alike), below(alike)) for alike in kinds.values()]
        return tuple(sorted(groups, key=lambda group: group.worst))

    def below(causes: Sequence[Finding]) -> tuple[Group, ...]:
        ids = set(map(id, causes))
        following = [f for f in findings if id(f) not in shown and ids & set(map(id, f.causes))]
        return grouped(following)

    return grouped([f for f in findings if not known & set(map(id, f.causes))])
