"""Rules on what stands before and after a batch norm."""

from collections.abc import Iterator

from torch import nn

from bnkit.behaviour import activation_of, has_known_forward
from bnkit.dataflow import Call, Dataflow
from bnkit.diagnosis.evidence import Evidence, once
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.fix import Fix, Step, by_edit
from bnkit.diagnosis.rules.fixes import edit
from bnkit.diagnosis.rules.places import Place, chained, layer_of
from bnkit.roles import Role, gives_answers
from bnkit.surgery.folding.folding import plan_folding, survey_of
from bnkit.surgery.normalized import NormalizedOutput
from bnkit.surgery.segment import role_of, segment_after


def after_activation(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that normalise what an activation makes."""
    for _, place, chain in chained(evidence):
        start = chain.start
        if start is not None and (role_of(start) is Role.ACTIVATION or ending_of(evidence, start)):
            yield Finding(
                "after-activation",
                "info",
                (place.path,),
                {"reads": str(start)},
                "The batch norm stands after the activation; the paper puts it before (Ioffe and "
                "Szegedy 2015, section 3.2). Both train, so this is for information.",
                "If before is meant, swap the two, or take it out by bnkit.remove and put it in "
                "by bnkit.add.",
            )


def on_logits(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms of a weight layer's output that is the answer of the model."""
    for flow, place, chain in chained(evidence):
        stretch = segment_after(flow, place.call)
        weights = chain.start is not None and role_of(chain.start) is Role.WEIGHTS
        own = ending_of(evidence, place.call)
        goes_on = stretch.others or not all(map(_is_answer, stretch.activations))
        activates = own is not None and not gives_answers(own)
        if not weights or not stretch.leaves or goes_on or activates:
            continue
        one_of_several = len(flow.outputs) > 1
        yield Finding(
            "on-logits",
            "info" if one_of_several else "warning",
            (place.path,),
            {"outputs of the model": len(flow.outputs)},
            "The batch norm is the last layer: it gives every output the same mean and spread over "
            "a mini-batch, whatever the classes in it, so neither confidence nor how frequent the "
            "classes are can be learned freely.",
            "Leave the last layer without batch norm; in a trained model fold it away: "
            "model = bnkit.fold(model.eval(), example).",
            _folding(evidence, [place.path]),
        )


def two_normalisations(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms of what another normalisation makes, with only pass-throughs between."""
    for flow, place, chain in chained(evidence):
        first = chain.start
        if place.value is None or first is None or not _normalises(first):
            continue
        if ending_of(evidence, first) is not None:  # an activation stands between the two
            continue
        yield Finding(
            "two-normalisations",
            "warning" if chain.alone else "info",
            (place.path, _norm_of(first)),
            {"reads": str(first)},
            "Two normalisations in a row: the second undoes scale and shift of the first, whose "
            "weight and bias do not train, and the statistics are taken twice."
            if chain.alone
            else "Two normalisations in a row, in a branch: on this way the second undoes scale "
            "and shift of the first, which train by what else reads them.",
            "Remove one of them.",
            _merging(evidence, flow, place, first) if chain.alone and not chain.passages else None,
        )


def unfolded(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that could be folded away in a model that is in eval mode."""
    if evidence.flow is None or not evidence.in_eval_mode:
        return
    paths = _foldable(evidence)
    if paths:
        yield Finding(
            "unfolded",
            "info",
            tuple(paths),
            {"batch norms": len(paths), "of": len(evidence.norms)},
            "In eval mode these batch norms are affine maps that the weight layers beside them "
            "could do at no cost.",
            "Before deployment, fold them: bnkit.fold(model, example).",
            _folding(evidence, paths),
        )


def ending_of(evidence: Evidence, call: Call) -> nn.Module | None:
    """Return the activation in which a batch norm ends, None for none and for other calls.

    The call is of the batch norm, or of the layer that owns it.
    """
    own = isinstance(call.module, NormalizedOutput)
    norm = evidence.norm(f"{call.name}.batchnorm" if own else call.name) if call.module else None
    return None if norm is None else activation_of(norm.module)


def _is_answer(activation: Call) -> bool:
    return gives_answers(activation.name if activation.module is None else activation.module)


def _normalises(call: Call) -> bool:
    return role_of(call) is Role.NORMALISATION or isinstance(call.module, NormalizedOutput)


def _norm_of(call: Call) -> str:
    own = isinstance(call.module, NormalizedOutput)
    return f"{call.name}.batchnorm" if own else layer_of(call)


def _merging(evidence: Evidence, flow: Dataflow, place: Place, first: Call) -> Fix | None:
    """Return the fix where both are batch norms of this model that are called once.

    The first gets the affine map of the second as well, which is then an identity. A network that
    trains keeps both: which of them it is to train with, a person decides.
    """
    if not evidence.in_eval_mode:
        return None
    path = _norm_of(first)
    norms = place.norm, evidence.norm(path)
    once = len(flow.calls_of(place.call.name)) == len(flow.calls_of(first.name)) == 1
    if not once or not all(norm is not None and _is_plain(norm.module) for norm in norms):
        return None
    if getattr(evidence.model.get_submodule(path), "weight", None) is None:
        return None
    merged = edit(place.path, "merge_norms", f"merge into '{path}'", {"into": path})
    return by_edit(merged, needs=[path, place.path])


def _is_plain(module: nn.Module) -> bool:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    mute = has_known_forward(module) and activation_of(module) is None
    tracks = getattr(module, "running_mean", None) is not None
    return isinstance(module, kinds) and mute and tracks


@once
def _foldable(evidence: Evidence) -> list[str]:
    assert evidence.flow is not None
    assert evidence.outcome is not None
    found = survey_of(evidence.model, evidence.flow, evidence.outcome)
    return [match.candidate.path for match in found.matches]


def _folding(evidence: Evidence, paths: list[str]) -> Fix | None:
    """Return the fix that folds these batch norms away, None where not all can be.

    And None for a network that trains: no fix takes a batch norm out of it.
    """
    if (
        not evidence.in_eval_mode
        or evidence.flow is None
        or not set(paths) <= set(_foldable(evidence))
    ):
        return None
    chosen, example = frozenset(paths), evidence.example
    return Fix(
        (Step(lambda model: plan_folding(model, example, where=lambda path, _: path in chosen)),)
    )
