"""`diagnose`: what is wrong with the batch norms of a model, where, and how to fix it."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from bnkit.diagnosis.diagnosis import Diagnosis
from bnkit.diagnosis.evidence import Evidence
from bnkit.diagnosis.finding import SEVERITIES, Finding
from bnkit.diagnosis.gathering import Given, gather
from bnkit.diagnosis.layer_records import layer_records
from bnkit.diagnosis.rules.programs import findings_of, remnants_in
from bnkit.diagnosis.rules.staleness import unread
from bnkit.diagnosis.rules.table import RULES, Rule
from bnkit.norms import unwrapped
from bnkit.options import with_options
from bnkit.tables import first_few


@with_options
def diagnose(
    model: nn.Module,
    batches: Any = None,
    *,
    skip: Collection[str] = (),
    progress: bool = True,
    **options: Unpack[Given],
) -> Diagnosis:
    """Return what is wrong with the batch norms of `model`, worst first, and how to fix it.

    `batches` are training data in any form that `bnkit.batches.calls_of` lists, and so is
    `inputs`; all of them are run, three times each, and four to seven copies of the model are made,
    of which at most four live at a time. `example` is a tensor, a tuple of positional
    or a dict of keyword arguments on which the dataflow is seen, by default the first mini-batch.
    Without either, and where the model fails on them, only the rules look that need no run, and
    `not_run` says why. With the `optimizer` of the model its parameter groups are looked at, too.
    `loss(output, target)` is the mean over a mini-batch, of which the target is the last item or
    has its name: the gap between training and eval mode is measured in it too.

    `skip` switches rules off: "dead-channels" everywhere, "dead-channels:head.*" for findings that
    name a layer whose path matches the pattern (as in fnmatch). A bar shows the `progress` after
    two seconds.

    Of a model that is sharded over ranks (fully_shard, or DTensors) the parts are gathered, so all
    ranks must call this, each with mini-batches of its own.

    `model`, the example and the random generators stay as they are, also after an error. Raises
    TypeError and ValueError for what is not a model, mini-batch, optimizer or loss, and for
    names in `skip` that no rule or layer has.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    >>> print(diagnose(model, example=torch.randn(8, 2)).worst)
    info
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` is a {type(model).__name__}: pass a torch.nn.Module")
    without(
        (), skip, rules=RULES, paths=_paths(unwrapped(model))
    )  # wrong names are worth no waiting
    evidence = gather(model, batches, progress=progress, **options)
    found = [finding for rule in RULES for finding in rule.check(evidence)]
    kept = linked(without(found, skip, rules=RULES, paths=_paths(evidence.model)), RULES)
    return Diagnosis(
        type(model).__name__,
        len(evidence.norms),
        tuple(sorted(kept, key=lambda finding: SEVERITIES.index(finding.severity))),
        tuple(_not_run(evidence)),
        layers=layer_records(evidence),
    )


def diagnose_export(program: Any) -> Diagnosis:
    """Return what an exported program still holds of batch norms, worst first.

    `program` is a torch.export.ExportedProgram, a torch.fx.GraphModule, an ONNX ModelProto, what
    torch.onnx.export returns, or the path of a file: of torch.export.save where it ends in .pt2,
    else of ONNX, which needs bnkit[onnx]. Only the graph in a file is read, so nothing in it
    can run code. A batch norm in training mode is an error: the program normalises by whatever
    examples come together. One in eval mode is information: it costs time that `bnkit.fold` before
    the export saves, where a dense or conv layer feeds it. `layers` of a finding are the paths of
    the exported layers where the program knows them, else the names of its nodes.

    Raises TypeError for what is not a program, MissingExtraError for an ONNX file without
    bnkit[onnx], FileNotFoundError for a path without a file and ValueError for a file of something
    else.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).train()
    >>> program = torch.export.export(model, (torch.ones(4, 2),))
    >>> [(finding.severity, finding.layers) for finding in diagnose_export(program)]
    [('error', ('1',))]
    """
    remnants = list(remnants_in(program))
    is_file = isinstance(program, str | Path)
    name = Path(program).name if is_file else type(program).__name__
    return Diagnosis(name, len(remnants), tuple(findings_of(remnants)))


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
    found_in: dict[tuple[str, str], list[int]] = defaultdict(list)  # by rule and layer
    for index, finding in enumerate(findings):
        for layer in dict.fromkeys(finding.layers):
            found_in[finding.rule, layer].append(index)
    done: dict[int, Finding] = {}

    def link(finding: Finding) -> Finding:
        if id(finding) not in done:
            places = [(slug, at) for slug in follows.get(finding.rule, ()) for at in finding.layers]
            indices = sorted({index for place in places for index in found_in.get(place, ())})
            causes = [link(findings[index]) for index in indices]
            causes = [cause for cause in causes if _of_untouched(cause)] or causes
            causes += [done.get(id(cause), cause) for cause in finding.causes]
            done[id(finding)] = replace(finding, causes=tuple(causes)) if causes else finding
        return done[id(finding)]

    return [link(finding) for finding in findings]


def _of_untouched(cause: Finding) -> bool:
    return any(each.rule == "never-updated" for each in (cause, *cause.causes))


def _not_run(evidence: Evidence) -> list[str]:
    failures = {"eval": evidence.failure, "training": evidence.training_failure}
    if evidence.failure == evidence.training_failure:
        why = [evidence.failure] if evidence.failure else []
    else:
        why = [f"in {mode} mode, {failure}" for mode, failure in failures.items() if failure]
    unlike = [r for r in unread(evidence) if r.norm is not None or evidence.batches_given]
    named = [f"{reading.path or 'the model'} ({reading.kind})" for reading in unlike]
    if named:
        why.append(f"the running statistics of {first_few(named)}: what they hold is not read")
    return why + [evidence.step_failure] * bool(evidence.step_failure) + evidence.notes


# What is switched off


def without(
    findings: Sequence[Finding],
    skip: Collection[str],
    *,
    rules: Sequence[Rule],
    paths: Sequence[str],
) -> list[Finding]:
    """Return the findings that `skip` leaves: it holds "rule" and "rule:pattern of a path".

    A pattern, as in fnmatch, drops a finding that names a layer which it matches. Raises TypeError
    for a single string, ValueError for a rule that there is not and a pattern that none of `paths`,
    those of the model's layers, matches.

    >>> rules = [Rule("on-logits", "Batch norm on the logits.", lambda _: ())]
    >>> found = [Finding("on-logits", "warning", ("head.bn",), {}, "", "")]
    >>> len(without(found, [], rules=rules, paths=["head.bn"]))
    1
    >>> without(found, ["on-logits:head.*"], rules=rules, paths=["head.bn"])
    []
    """
    if isinstance(skip, str):
        raise TypeError(f"`skip` is the string {skip!r}: pass a list of such, [{skip!r}]")
    if not isinstance(skip, Collection) or not all(isinstance(name, str) for name in skip):
        raise TypeError(f"`skip` is {skip!r}: pass a list of names of rules, such as ['on-logits']")
    switches = [_switch(name, paths, rules) for name in skip]

    def is_off(finding: Finding) -> bool:
        """Return whether its rule is off everywhere, or in a layer that it names."""
        patterns = [pattern for slug, pattern in switches if slug == finding.rule]
        named = (fnmatchcase(layer, p) for layer in finding.layers for p in patterns)
        return "*" in patterns or any(named)

    return [finding for finding in findings if not is_off(finding)]


def _paths(model: nn.Module) -> list[str]:
    return [path for path, _ in model.named_modules()]


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
