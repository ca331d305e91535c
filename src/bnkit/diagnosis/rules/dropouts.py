"""The rule on dropout before a batch norm."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from bnkit.dataflow import Call, Dataflow, Value
from bnkit.diagnosis.evidence import Evidence, Norm
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.fix import Fix, by_edit, in_turn
from bnkit.diagnosis.rules.distances import by_chance, distance, root_mean_square
from bnkit.diagnosis.rules.fixes import edit, measuring_trained_anew
from bnkit.diagnosis.rules.places import Makers, Place, chain_to, layer_of, makers_of, places
from bnkit.diagnosis.rules.reading import readings
from bnkit.diagnosis.rules.staleness import CHANGE, change_by, is_untrained
from bnkit.roles import Role, is_batch_norm
from bnkit.surgery.normalized import Normalized
from bnkit.surgery.segment import role_of

_DRAWS = frozenset(
    """
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout
    bernoulli rand rand_like rrelu
    """.split()
)
_EPS = 1e-12  # channels that are constant both times have the ratio 1


def dropout_before(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that read, with no batch norm between, what dropout has changed.

    Dropout makes the variance larger in training than in eval mode, and the running statistics
    are those of training (Li et al. 2018, "Understanding the disharmony between dropout and batch
    normalization by variance shift", section 3). It is a warning where the output of the batch norm
    moves more by that than by the statistics of one mini-batch, with which training copes, and that
    of the model by a tenth. How much of it passes weight layers and sums depends on the weights:
    while a young layer trains, it is a warning where the batch norm itself reads the dropout.
    """
    flow, eval_flow = evidence.training_flow, evidence.flow
    if flow is None:
        return
    makers = makers_of(flow)
    in_eval = eval_flow.calls if eval_flow is not None else ()
    still_on = {call.scope for call in in_eval if call.module is None and _draws(call)}
    first_calls = {place.path: place for place in reversed(places(evidence))}
    for place in reversed(first_calls.values()):
        sources = [call for call in _sources(makers, place) if layer_of(call) not in still_on]
        if sources and place.trains:
            measured, harms = _measured(evidence, place)
            early = harms and _is_untrained(evidence, place) and not _reads_it(flow, makers, place)
            yield Finding(
                "dropout-before",
                "warning" if harms and not early else "info",
                (place.path, *dict.fromkeys(map(layer_of, sources))),
                {"dropout": ", ".join(dict.fromkeys(map(str, sources))), **measured},
                "Dropout before a batch norm raises the variance in training, which the running "
                "statistics keep, and is off in eval mode: there the batch norm divides by too "
                "much."
                + " How much of it comes here depends on weights that are not trained."
                * early,
                "Drop after the last batch norm, or not at all; for a trained model, measure the "
                "running statistics anew with dropout off: bnkit.recalibrate(model, batches)."
                + ("" if measured else " Give mini-batches to have the shift measured."),
                _fix(evidence, flow, sources),
            )


def _sources(makers: Makers, place: Place) -> list[Call]:
    """Return what draws random numbers before this batch norm and after the ones before it."""
    waiting = deque(place.call.inputs if place.value is None else (place.value,))
    seen: set[Value] = set(waiting)
    found: list[Call] = []
    while waiting:
        maker = makers.get(waiting.popleft())
        if maker is None or _is_batch_norm(maker):
            continue
        if _draws(maker):
            found.append(maker)
        fresh = [value for value in maker.inputs if value not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    return found


def _is_untrained(evidence: Evidence, place: Place) -> bool:
    own = [reading for reading in readings(evidence) if reading.norm is place.norm]
    return place.norm is not None and all(is_untrained(evidence, each) for each in own)


def _reads_it(flow: Dataflow, makers: Makers, place: Place) -> bool:
    """Return whether dropout makes its input, at most with pass-throughs between.

    Of values x the share 1 − p is kept and multiplied by 1 / (1 − p), so their variance is then
    (E[x²] / (1 − p) − E[x]²) / var(x) ≥ 1 / (1 − p) times what it was, whatever x is.
    """
    chain = chain_to(flow, makers, place)
    return any(map(_draws, (*chain.passages, *([chain.start] if chain.start else ()))))


def _is_batch_norm(call: Call) -> bool:
    spelling = call.name if call.module is None else call.module
    normalises = role_of(call) is Role.NORMALISATION and is_batch_norm(spelling)
    return normalises or isinstance(call.module, Normalized)


def _draws(call: Call) -> bool:
    """Return whether this call drops values at random, or draws the numbers to do so."""
    module: Any = call.module
    if module is not None:
        return "dropout" in call.kind.lower() and getattr(module, "p", 1.0) > 0 and module.training
    if call.name.rstrip("_") not in _DRAWS:
        return False
    p = call.keywords.get("p", call.arguments[1] if len(call.arguments) > 1 else None)
    training = call.keywords.get("training", call.arguments[2] if len(call.arguments) > 2 else True)
    return "dropout" not in call.name or (p != 0 and training is not False)


def _measured(evidence: Evidence, place: Place) -> tuple[dict[str, float], bool]:
    """Return the ratio of the variances with dropout and without, and whether it does harm."""
    norm = place.norm
    if norm is None or not norm.in_training or not norm.as_trained:
        return {}, False
    with_it, without = norm.in_training[0], norm.as_trained[0]
    ratios = (with_it.moments.variance + _EPS) / (without.moments.variance + _EPS)
    moved = distance(norm.module, without.moments, with_it.moments)
    chance = by_chance(norm.module, without)
    figures = {
        "variance in training / in eval mode": root_mean_square(ratios.square(), norm.module),
        "share of output moved": moved,
        "by chance": chance,
    }
    of_model = _change_of_model(evidence, norm)
    if of_model is not None:
        figures["of the model"] = of_model
    return figures, moved > chance and (of_model is None or of_model > CHANGE)


def _change_of_model(evidence: Evidence, norm: Norm) -> float | None:
    """Return how far the model's output in eval mode moves by the statistics with dropout."""
    own = [reading for reading in readings(evidence) if reading.norm is norm and reading.seen]
    moments = norm.in_training[0].moments
    return change_by(evidence, dict.fromkeys(own, (moments.mean, moments.variance)))


def _fix(evidence: Evidence, flow: Dataflow, sources: list[Call]) -> Fix | None:
    """Return the fix where one dropout, a module that is called once, is all there is.

    The statistics of a trained model are those of its dropout, in this layer and in those that
    follow, so they are measured anew without it.
    """
    if len(sources) != 1 or sources[0].module is None or len(flow.calls_of(sources[0].name)) > 1:
        return None
    without = by_edit(edit(sources[0].name, "leave_out", "become Identity"))
    return in_turn(without, measuring_trained_anew(evidence))
