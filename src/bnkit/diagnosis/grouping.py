"""`groups_of`: findings in groups of their kind, each with those that follow from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bnkit.diagnosis.finding import SEVERITIES, Finding


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
