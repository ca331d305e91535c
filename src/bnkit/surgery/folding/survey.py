"""`survey`: every batch norm of a model, and which layer takes it in, or why none does."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bnkit.dataflow import Dataflow, Value, duplicate, observe
from bnkit.surgery.distance import Outcome, witnessing
from bnkit.surgery.folding.application import folded, take_out
from bnkit.surgery.folding.matching import Match, Matcher
from bnkit.surgery.folding.sites import (
    Site,
    arguments_of,
    find_sites,
    functional_batch_norms,
    objection_to_batch_norm,
)
from bnkit.surgery.folding.targets import shared_parameters
from bnkit.surgery.operations import knowing_holders
from bnkit.surgery.plan import LeftAlone

Where = Callable[[str, nn.Module], bool]


@dataclass
class Survey:
    """What was found: `matches` in the order in which they are to be folded, and the rest.

    `stuck` are batch norms that no layer takes in, though what they do in eval mode is known, and
    why; `left_alone` are those of which it is unknown, those not chosen, and functions. `outcome`
    is what the model gave.
    """

    outcome: Outcome
    matches: list[Match] = field(default_factory=list)
    stuck: list[tuple[Site, str]] = field(default_factory=list)
    left_alone: list[LeftAlone] = field(default_factory=list)


def survey(model: nn.Module, example: Any, *, where: Where | None = None) -> Survey:
    """Return what can be folded into what, by one run of a copy of `model` on `example`."""
    subject = duplicate(model)
    with witnessing(subject) as witness:
        flow = observe(subject, example)
    found = Survey(witness.outcome(flow.dtypes), left_alone=list(functional_batch_norms(flow)))
    known = []
    for site in find_sites(subject, flow):
        objection = objection_to_batch_norm(site, flow)
        if objection is None and where is not None:
            chosen = where(site.path, model.get_submodule(site.path))
            objection = None if chosen else "`where` did not choose it"
        if objection is None:
            known.append(site)
        else:
            found.left_alone.append(LeftAlone(site.path, site.kind, objection))
    with knowing_holders(subject):
        _match(subject, flow, known, found)
    return found


def _match(subject: nn.Module, flow: Dataflow, sites: list[Site], found: Survey) -> None:
    """Match in the order of the calls with layers before, then backwards with layers after.

    So a chain of batch norms is folded from its layer outwards. Each match is folded in `subject`
    at once, so that the next ones see it.
    """
    matcher = Matcher(flow, shared_parameters(subject))
    ready, waiting = [], []
    for site in sites:
        objection = _objection_to_calls(site)
        if objection is None:
            ready.append(site)
        else:
            found.stuck.append((site, objection))
    for site in sorted(ready, key=lambda site: site.calls[0].index):
        reason = _fold(subject, matcher, matcher.before(site), found)
        if reason is not None:
            waiting.append((site, reason))
    for site, before in reversed(waiting):
        reason = _fold(subject, matcher, matcher.after(site), found)
        if reason is not None:
            found.stuck.append((site, f"before it: {before}; after it: {reason}"))


def _objection_to_calls(site: Site) -> str | None:
    if not site.calls:
        return "not called on this example in eval mode, or only inside a layer that is one step"
    if len(site.calls) > 1:
        return f"called {len(site.calls)} times in one forward"
    (call,) = site.calls
    given = arguments_of(call)[: 1 if site.owner is not None else None]
    if len(call.outputs) != 1 or not given or not all(type(part) is Value for part in given):
        return "called with more than tensors of the dataflow"
    if len(given) != len(set(given)):
        return "it adds what it normalises"
    return None


def _fold(subject: nn.Module, matcher: Matcher, match: Match | str, found: Survey) -> str | None:
    """Fold this match in `subject` and note it, or return why not."""
    if isinstance(match, str):
        return match
    layer = match.layer.module
    assert layer is not None
    site = match.site
    values = folded(site.module, layer, side=match.side, features=match.features)
    if not all(map(_is_finite, values)):
        return f"the weight or bias of {match.layer} would not be finite in {values[0].dtype}"
    target, residual = match.layer.name, site.adds_residual
    take_out(subject, site.path, target=target, new=values, residual=residual)
    if site.activation is None and not site.adds_residual:
        matcher.gone.add(site.path)
    found.matches.append(match)
    return None


def _is_finite(values: Tensor) -> bool:
    """Return whether all are finite, without a tensor of as many answers."""
    return not values.numel() or all(end.isfinite().item() for end in values.aminmax())
