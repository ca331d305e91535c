"""`diagnose`: what is wrong with the batch norms of a model, where, and what mends it."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bnkit.batches import Inputs
from bnkit.diagnosis.diagnosis import Diagnosis
from bnkit.diagnosis.evidence import Evidence
from bnkit.diagnosis.finding import SEVERITIES, Finding
from bnkit.diagnosis.gathering import gather
from bnkit.diagnosis.layers import layer_records
from bnkit.diagnosis.losses import Loss
from bnkit.diagnosis.rules.rule import Rule
from bnkit.diagnosis.rules.table import RULES
from bnkit.diagnosis.skipping import without
from bnkit.norms import unwrapped


def diagnose(
    model: nn.Module,
    batches: Any = None,
    *,
    example: Any = None,
    optimizer: Optimizer | None = None,
    skip: Collection[str] = (),
    inputs: Inputs | None = None,
    loss: Loss | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Return what is wrong with the batch norms of `model`, worst first, and what mends it.

    `batches` are training data in any form that `bnkit.batches.calls_of` lists, and so is
    `inputs`; all of them are run, three times each. `example` is a tensor, a tuple of positional
    or a dict of keyword arguments on which the dataflow is seen, by default the first mini-batch.
    Without either, and where the model fails on them, only the rules look that need no run, and
    `not_run` says why. With the `optimizer` of the model its parameter groups are looked at, too.
    `loss(output, target)` is the mean over a mini-batch, of which the target is the last item or
    has its name: the gap between training and eval mode is told in it, too.

    `skip` switches rules off: "dead-channels" everywhere, "dead-channels:head.*" for findings that
    name a layer whose path matches the pattern (as in fnmatch). A bar shows the `progress` after
    two seconds.

    `model`, the example and the random generators stay as they are, also after an error. Raises
    TypeError and ValueError for what is no model, no mini-batch, no optimizer and no loss, and for
    names in `skip` that no rule or layer has.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    >>> print(diagnose(model, example=torch.randn(8, 2)).worst)
    info
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` is a {type(model).__name__}: pass a torch.nn.Module")
    without((), skip, rules=RULES, model=unwrapped(model))  # wrong names are worth no waiting
    evidence = gather(
        model,
        batches,
        example=example,
        optimizer=optimizer,
        inputs=inputs,
        loss=loss,
        progress=progress,
    )
    found = [finding for rule in RULES for finding in rule.check(evidence)]
    kept = without(found, skip, rules=RULES, model=evidence.model)
    return Diagnosis(
        type(model).__name__,
        len(evidence.norms),
        worst_first(linked(kept, RULES)),
        tuple(_not_run(evidence)),
        layers=layer_records(evidence),
    )


def linked(findings: Sequence[Finding], rules: Sequence[Rule]) -> list[Finding]:
    """Return the findings with their causes: those of rules that theirs follow, in a layer of both.

    Statistics that are still those of the constructor owe that to nothing else: a finding that
    follows from `never-updated` follows from no other that does not.

    >>> rules = [Rule("a", "", lambda _: ()), Rule("b", "", lambda _: (), follows=("a",))]
    >>> found = [Finding(slug, "info", ("bn",), {}, "", "") for slug in "ab"]
    >>> [len(finding.causes) for finding in linked(found, rules)]
    [0, 1]
    """
    follows = {rule.slug: rule.follows for rule in rules}
    done: dict[int, Finding] = {}

    def link(finding: Finding) -> Finding:
        if id(finding) not in done:
            causes = [
                link(other)
                for other in findings
                if other.rule in follows.get(finding.rule, ())
                and not set(other.layers).isdisjoint(finding.layers)
            ]
            causes = [cause for cause in causes if _of_untouched(cause)] or causes
            causes += [done.get(id(cause), cause) for cause in finding.causes]
            done[id(finding)] = replace(finding, causes=tuple(causes)) if causes else finding
        return done[id(finding)]

    return [link(finding) for finding in findings]


def _of_untouched(cause: Finding) -> bool:
    return any(each.rule == "never-updated" for each in (cause, *cause.causes))


def worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings sorted by severity; those of the same one stay in their order.

    >>> found = [Finding("a", severity, (), {}, "", "") for severity in ("info", "error")]
    >>> [finding.severity for finding in worst_first(found)]
    ['error', 'info']
    """
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def _not_run(evidence: Evidence) -> list[str]:
    if evidence.failure == evidence.training_failure:
        return [evidence.failure] if evidence.failure else []
    modes = {"eval": evidence.failure, "training": evidence.training_failure}
    return [f"in {mode} mode, {why}" for mode, why in modes.items() if why]
