"""`Rule`: a name for one trouble of batch norms, and the function that finds it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bnkit.diagnosis.evidence import Evidence
from bnkit.diagnosis.finding import Finding


@dataclass(frozen=True)
class Rule:
    """One trouble: its slug, one sentence on it, and `check`, which finds it.

    `follows` are slugs of rules: a finding of this rule is a consequence of theirs in a layer that
    both name, and is grouped under it.
    """

    slug: str
    summary: str
    check: Callable[[Evidence], Iterable[Finding]]
    follows: tuple[str, ...] = ()
