"""`Diagnosis`: the findings on a model, worst first, as a table, in JSON and in SARIF."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import quote

from torch import nn

from bnkit.deprecation import warn_of
from bnkit.diagnosis.explanation import explanation_of
from bnkit.diagnosis.finding import SEVERITIES, Finding, Group, Severity, groups_of
from bnkit.diagnosis.fix import Fix, fixed_by
from bnkit.diagnosis.layer_records import LayerRecord
from bnkit.diagnosis.rules.table import RULES, Rule
from bnkit.notebooks import Shown
from bnkit.surgery.plan import Plan
from bnkit.tables import first_few, frame_of, text_table

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_SHOWN = 8  # layers in a row of the table
_COMMANDS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "notice"}
_LEVELS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "note"}


@dataclass(frozen=True, eq=False)
class Diagnosis(Shown):
    """What is wrong with a model: `findings`, worst first.

    `model` is the name of its class, `batch_norms` how many it has as layers, `not_run` why rules
    that need a run could not look at all of it. `layers` holds each batch norm in plain numbers.
    Prints as a table in which each finding stands above those that follow from it;
    `bnkit.report.write_diagnosis` makes a page of it.
    """

    model: str
    batch_norms: int
    findings: tuple[Finding, ...]
    not_run: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = RULES
    layers: tuple[LayerRecord, ...] = ()

    def __iter__(self) -> Iterator[Finding]:
        """Yield the findings, worst first."""
        return iter(self.findings)

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding, None where there is none."""
        return min((f.severity for f in self.findings), key=SEVERITIES.index, default=None)

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of this severity and of worse ones."""
        if severity not in SEVERITIES:
            raise ValueError(f"`severity` is {severity!r}: choose from {SEVERITIES}")
        bar = SEVERITIES.index(severity)
        return tuple(f for f in self.findings if SEVERITIES.index(f.severity) <= bar)

    def fixed(self, model: nn.Module, *, severity: Severity = "warning") -> nn.Module:
        """Return a copy of `model` with all automatic fixes of this severity and worse.

        Causes are fixed, not what follows from them: statistics first, then what else there is,
        worst first, each in what the others have left. Raises ValueError where nothing can be
        fixed automatically.
        """
        return self.fixed_with_plans(model, severity=severity)[0]

    def fixed_with_plans(
        self, model: nn.Module, *, severity: Severity = "warning"
    ) -> tuple[nn.Module, tuple[Plan, ...]]:
        """Return what `fixed` does, and the plans that made it, with which `bnkit.save` keeps it.

        >>> from bnkit.diagnosis import diagnose
        >>> found = diagnose(nn.Sequential(nn.BatchNorm1d(2, momentum=0.99)))
        >>> fixed, (plan,) = found.fixed_with_plans(nn.Sequential(nn.BatchNorm1d(2)))
        >>> plan.edits[0].action
        'momentum = 0.01'
        """
        return fixed_by([fix for fix in self.fixes(severity) if isinstance(fix, Fix)], model)

    def fixes(self, severity: Severity = "warning") -> list[Callable[[Any], Any]]:
        """Return the automatic fixes of this severity and worse: of causes, not of what follows.

        Raises ValueError where there are none.
        """
        found = {id(finding): finding for finding in self.at_least(severity)}
        fixes = [
            f.automatic_fix
            for f in found.values()
            if f.automatic_fix and not any(c.automatic_fix for c in f.causes if id(c) in found)
        ]
        if not fixes:
            raise ValueError(
                f"nothing in this diagnosis of severity {severity!r} or worse can be fixed "
                f"automatically: follow the `fix` of its findings"
            )
        return fixes

    def mended(self, model: nn.Module, *, severity: Severity = "warning") -> nn.Module:
        """Return what `fixed` returns, whose old name this is."""
        warn_of("Diagnosis.mended", "Diagnosis.fixed")
        return self.fixed(model, severity=severity)

    def mended_with_plans(
        self, model: nn.Module, *, severity: Severity = "warning"
    ) -> tuple[nn.Module, tuple[Plan, ...]]:
        """Return what `fixed_with_plans` returns, whose old name this is."""
        warn_of("Diagnosis.mended_with_plans", "Diagnosis.fixed_with_plans")
        return self.fixed_with_plans(model, severity=severity)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The findings in groups of their kind, each with those that follow from it."""
        return groups_of(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis in plain data, which JSON can hold."""
        return {
            "model": self.model,
            "batch_norms": self.batch_norms,
            "worst": self.worst,
            "findings": [_plain(finding.to_json()) for finding in self.findings],
            "not_run": list(self.not_run),
            "layers": [_plain(asdict(layer)) for layer in self.layers],
        }

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row for each finding; MissingExtraError without pandas."""
        kept = ("rule", "severity", "layers", "measured", "why", "fix", "fixable")
        plain = [finding.to_json() for finding in self.findings]
        return frame_of({name: each[name] for name in kept} for each in plain)

    def to_sarif(self, *, file: str = "", line: int = 1) -> dict[str, Any]:
        """Return the diagnosis as a SARIF 2.1.0 log, which code scanners read (OASIS 2020).

        Layers are logical locations; a finding of severity "info" is of level "note". `file`, a
        path from the root of the project, and `line` say where the model is made: scanners such as
        GitHub's take no finding without such a place.

        >>> found = Finding("on-logits", "info", ("fc",), {}, "Why.", "Fix.")
        >>> log = Diagnosis("Net", 1, (found,)).to_sarif(file="net.py", line=7)
        >>> (place,) = log["runs"][0]["results"][0]["locations"]
        >>> place["physicalLocation"]["region"], place["logicalLocations"]
        ({'startLine': 7}, [{'fullyQualifiedName': 'Net.fc'}])
        """
        driver = {"name": "bnkit", "rules": [_sarif_rule(rule) for rule in self.rules]}
        place = {"artifactLocation": {"uri": quote(file)}, "region": {"startLine": line}}
        physical = {"physicalLocation": place} if file else {}
        results = [self._sarif_result(finding, physical) for finding in self.findings]
        return {
            "$schema": _SCHEMA,
            "version": "2.1.0",
            "runs": [{"tool": {"driver": driver}, "results": results}],
        }

    def to_github(self, *, file: str = "", line: int = 1) -> str:
        """Return the findings as commands of GitHub's workflows, which annotate a pull request.

        `file` and `line` are those of `to_sarif`.

        >>> found = Finding("on-logits", "info", ("fc",), {}, "Why.", "Fix.")
        >>> print(Diagnosis("Net", 1, (found,)).to_github(file="net.py", line=7))
        ::notice file=net.py,line=7,title=bnkit%3A on-logits::fc: Why. Fix.
        """
        place = f"file={_escaped(file, ':,')},line={line}," if file else ""
        return "\n".join(
            f"::{_COMMANDS[each.severity]} {place}title={_escaped(f'bnkit: {each.rule}', ':,')}"
            f"::{_escaped(f'{each.place}: {each.why} {each.fix}')}"
            for each in self.findings
        )

    def _sarif_result(self, finding: Finding, physical: dict[str, Any]) -> dict[str, Any]:
        names = [rule.slug for rule in self.rules]
        measured = f" Measured: {finding.figures}." if finding.measured else ""
        logical = [
            {"fullyQualifiedName": f"{self.model}.{layer}" if layer else self.model}
            for layer in finding.layers
        ]
        place = {**physical, **({"logicalLocations": logical} if logical else {})}
        return {
            "ruleId": finding.rule,
            **({"ruleIndex": names.index(finding.rule)} if finding.rule in names else {}),
            "level": _LEVELS[finding.severity],
            "message": {"text": f"{finding.why}{measured} {finding.fix}"},
            "locations": [place] if place else [],
            "properties": _plain(finding.to_json()),
        }

    def __str__(self) -> str:
        notes = "".join(f"\nNot looked at: {why}" for why in self.not_run)
        what = f"{self.model} with {self.batch_norms} batch norm layer"
        what += "" if self.batch_norms == 1 else "s"
        if not self.findings and not self.batch_norms:
            return (
                f"{self.model} has no batch norm: bnkit.add(model, example) puts it in, and bnkit "
                f"compare says whether it would help.{notes}"
            )
        if not self.findings:
            return f"Nothing found in {what}.{notes}"
        rows = [_row(depth, each.findings) for group in self.groups for depth, each in group.walk()]
        table = text_table(["severity", "rule", "layers", "measured", "why and what to do"], rows)
        return f"{table}\n{self._counts()} in {what}.{notes}"

    def _counts(self) -> str:
        numbers = {s: sum(f.severity == s for f in self.findings) for s in SEVERITIES}
        return ", ".join(
            f"{n} {s}{'s' if n > 1 and s != 'info' else ''}" for s, n in numbers.items() if n
        )


def _escaped(text: str, more: str = "") -> str:
    """Return text as a workflow command takes it, without line ends and these characters."""
    for character in f"%\r\n{more}":  # the percent sign first: the others bring some
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def _sarif_rule(rule: Rule) -> dict[str, Any]:
    found = explanation_of(rule)
    return {
        "id": rule.slug,
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": found.trouble},
        "help": {"text": str(found), "markdown": found.body},
    }


def _row(depth: int, findings: Sequence[Finding]) -> tuple[str, ...]:
    first, more = findings[0], len(findings) - 1
    mark = f"{'  ' * (depth - 1)}↳ " if depth else ""
    of_first = " (the first)" if more and first.measured else ""
    words = f"{first.why} {first.fix}"
    figures = first.figures + of_first
    return first.severity, f"{mark}{first.rule}", _places(findings), figures, words


def _places(findings: Sequence[Finding]) -> str:
    """Return the layers of the findings, some of them where they are many."""
    if len(findings) > 1:
        return first_few([finding.place for finding in findings], shown=_SHOWN)
    layers = findings[0].layers
    more = f", and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
    return replace(findings[0], layers=layers[:_SHOWN]).place + more


def _plain(tree: Any) -> Any:
    """Return the tree with numbers that JSON does not know as words."""
    match tree:
        case dict():
            return {key: _plain(value) for key, value in tree.items()}
        case list() | tuple():
            return [_plain(value) for value in tree]
        case float() if not math.isfinite(tree):
            return str(tree)
    return tree
