"""Which rules are switched off, everywhere or in some layers."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import nn

from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules.rule import Rule


def without(
    findings: Sequence[Finding], skip: Collection[str], *, rules: Sequence[Rule], model: nn.Module
) -> list[Finding]:
    """Return the findings that `skip` leaves: it holds "rule" and "rule:pattern of a path".

    A pattern, as in fnmatch, drops a finding that names a layer which it matches. Raises TypeError
    for a single string, ValueError for a rule that there is not and a pattern that no layer of
    `model` matches.

    >>> rules = [Rule("on-logits", "Batch norm on the logits.", lambda _: ())]
    >>> found = [Finding("on-logits", "warning", ("head.bn",), {}, "", "")]
    >>> model = nn.ModuleDict({"head": nn.ModuleDict({"bn": nn.BatchNorm1d(2)})})
    >>> len(without(found, [], rules=rules, model=model))
    1
    >>> without(found, ["on-logits:head.*"], rules=rules, model=model)
    []
    """
    if isinstance(skip, str):
        raise TypeError(f"`skip` is the string {skip!r}: pass a list of such, [{skip!r}]")
    if not isinstance(skip, Collection) or not all(isinstance(name, str) for name in skip):
        raise TypeError(f"`skip` is {skip!r}: pass a list of names of rules, such as ['on-logits']")
    paths = [path for path, _ in model.named_modules()]
    switches = [_switch(name, paths, rules) for name in skip]
    return [finding for finding in findings if not any(off(finding, *s) for s in switches)]


def off(finding: Finding, slug: str, pattern: str) -> bool:
    """Return whether this finding is of the rule, and names a layer that the pattern matches.

    >>> off(Finding("on-logits", "warning", (), {}, "", ""), "on-logits", "*")
    True
    """
    matches = pattern == "*" or any(fnmatchcase(layer, pattern) for layer in finding.layers)
    return finding.rule == slug and matches


def _switch(name: str, paths: Sequence[str], rules: Sequence[Rule]) -> tuple[str, str]:
    slug, _, pattern = name.partition(":")
    known = [rule.slug for rule in rules]
    if slug not in known:
        raise ValueError(
            f"`skip` has {name!r}, and no rule is called {slug!r}: the rules are {', '.join(known)}"
        )
    pattern = pattern or "*"
    if not any(fnmatchcase(path, pattern) for path in paths):
        raise ValueError(f"`skip` has {name!r}, and no layer of the model matches {pattern!r}")
    return slug, pattern
