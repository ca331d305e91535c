"""`fold`: the same network in eval mode, with its batch norms in the layers beside them."""

from dataclasses import replace
from typing import Any

from torch import nn

from bnkit.surgery.distance import Outcome
from bnkit.surgery.folding.matching import Match
from bnkit.surgery.folding.sites import Site
from bnkit.surgery.folding.survey import Where, survey
from bnkit.surgery.operations import Edit
from bnkit.surgery.plan import LeftAlone, Plan
from bnkit.surgery.promise import SurgeryError, prove_change

_SHOWN = 8  # layers in a message


def fold(
    model: nn.Module, example: Any, *, where: Where | None = None, tolerance: float | None = None
) -> nn.Module:
    """Return a copy of `model` that computes the same in eval mode with fewer batch norms.

    Each batch norm goes into the dense or conv layer (of any rank, grouped, transposed) whose
    output it alone reads, or, where that is exact, into the one that alone reads it: W → W · scale
    and a bias, where γ/√(σ² + ε) is the scale, computed in float64. Between them may stand what
    only moves values. A batch norm's activation stays where it was. What cannot be folded is left
    as it is, and `plan_folding` says why. Parameters keep dtype, device and whether they train; a
    new bias trains if the layer's weight or the batch norm's bias does.

    `example` is a tensor, a tuple of positional or a dict of keyword arguments, on which the model
    runs in eval mode; it must take the way that all inputs take, since a branch that it does not
    take is not seen. `where(path, batch_norm)` chooses among the batch norms. That both compute the
    same is proven on `example`, in float64 and, within `tolerance` (see `prove_same_function`), in
    the model's dtype. `model` stays as it is.

    Raises ExampleError if the model fails on `example`, SurgeryError (both are ValueErrors) if
    nothing can be folded or the copy computes something else.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    >>> fold(model, torch.zeros(1, 3, 8, 8))
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )
    """
    plan = plan_folding(model, example, where=where, tolerance=tolerance)
    if not plan.edits:
        raise SurgeryError(nothing_to_do("folded", "plan_folding", plan, where))
    return plan.apply(model)


def plan_folding(
    model: nn.Module, example: Any, *, where: Where | None = None, tolerance: float | None = None
) -> Plan:
    """Return what `fold` would do to each batch norm, what it would leave alone and why.

    Its `proof` says how far the folded model is from `model` on `example`. Raises as `fold` does,
    but not where nothing can be folded.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))
    >>> print(plan_folding(model, torch.ones(1, 2)).left_alone[0].why)
    before it: '2' (ReLU) stands between it and a weight layer; after it: what '3' (BatchNorm1d) \
makes leaves the model
    """
    found = survey(model, example, where=where)
    edits = tuple(fold_edit(match) for match in found.matches)
    stuck = [LeftAlone(site.path, site.kind, why) for site, why in found.stuck]
    left_alone = in_order_of(model, [*stuck, *found.left_alone])
    return proven(model, Plan(edits, left_alone), example, found.outcome, tolerance=tolerance)


def proven(
    model: nn.Module, plan: Plan, example: Any, before: Outcome, *, tolerance: float | None
) -> Plan:
    """Return `plan` with its proof on `example`, on which `model` gave what is `before`.

    A plan without edits needs none. Raises SurgeryError if the changed model differs.
    """
    if not plan.edits:
        return plan
    proof = prove_change(model, plan.change, example, before=before, tolerance=tolerance)
    return replace(plan, proof=proof)


def fold_edit(match: Match) -> Edit:
    """Return the edit that folds this match."""
    site, layer = match.site, match.layer
    options = {"target": layer.name, "residual": site.adds_residual, "side": match.side}
    values = {"features": match.features}
    kept = f", keep {site.activation}" if site.activation is not None else ""
    action = f"fold into {layer}{kept}{of_domain(site)}"
    return Edit(site.path, site.kind, action, _why(match), "fold_away", options, values)


def of_domain(site: Site) -> str:
    """Return the words that say of which domain the statistics are, where there are several."""
    return f", of the domain {site.domain!r}" if site.domain else ""


def _why(match: Match) -> str:
    if match.site.owner == match.layer.name:
        return f"it normalises the layer's own {'output' if match.side == 'before' else 'input'}"
    way = "" if not match.distance else f", {match.distance} calls away that only move values"
    return f"the layer {match.side} it{way}"


def in_order_of(model: nn.Module, rows: list[LeftAlone]) -> tuple[LeftAlone, ...]:
    """Return the rows in the order of the model's layers; functions, which have none, come last."""
    order = {path: index for index, (path, _) in enumerate(model.named_modules())}
    return tuple(sorted(rows, key=lambda row: order.get(row.layer, len(order))))


def nothing_to_do(done: str, planner: str, plan: Plan, where: Where | None) -> str:
    """Return the message for a plan without edits."""
    if not plan.left_alone:
        return f"nothing in this model can be {done}: it has no batch norm"
    problem = f"nothing {'that `where` chose' if where else 'in this model'} can be {done}"
    reasons = [f"{left.layer or 'the model'} ({left.kind}): {left.why}" for left in plan.left_alone]
    more = len(reasons) - _SHOWN
    rest = f"; and {more} more, which {planner} lists" if more > 0 else ""
    return f"{problem}. {'; '.join(reasons[:_SHOWN])}{rest}"
