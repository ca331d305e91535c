"""`fold`: the same network in eval mode, with its batch norms in the layers beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.behaviour import Affine, activation_of, affine_of, name_of_activation
from bnkit.dataflow import Call, Dataflow, Value, duplicate
from bnkit.layers.activated import ActivatedNorm, disclose, path_of_norm
from bnkit.layers.affine import ResidualActivation, activation_module
from bnkit.norms import NOT_CHOSEN, Where
from bnkit.parameters import shared_parameters
from bnkit.roles import can_own_batch_norm, is_batch_norm
from bnkit.surgery.folding.arithmetic import after_layer, before_layer, features_out
from bnkit.surgery.folding.candidates import (
    Candidate,
    arguments_of,
    find_candidates,
    functional_batch_norms,
    objection_to_batch_norm,
    objection_to_eval_mode,
)
from bnkit.surgery.folding.matching import (
    Match,
    Matcher,
    Side,
    is_averaging,
    is_joining,
    is_summing,
    objection_to_module,
    original_class,
)
from bnkit.surgery.normalized import Normalized
from bnkit.surgery.operations import Edit, knowing_holders, operation, replace_module
from bnkit.surgery.plan import LeftAlone, Plan, in_order_of
from bnkit.surgery.verification import Outcome, SurgeryError, trace_itself


def fold(
    model: nn.Module, example: Any, *, where: Where | None = None, tolerance: float | None = None
) -> nn.Module:
    """Return a copy of `model` that computes the same in eval mode with fewer batch norms.

    Each batch norm goes into the dense or conv layer (of any rank, grouped, transposed) whose
    output it alone reads, or, where that is exact, into the one that alone reads it: W → W · scale
    and a bias, where γ/√(σ² + ε) is the scale, computed in float64. Between them may stand what
    only moves values, and a concatenation or sum of what several layers make: then each of these
    takes it in, or none. A batch norm's activation stays where it was. What cannot be folded is
    left as it is, and `plan_folding` says why. Parameters keep dtype, device and whether they
    train; a new bias trains if the layer's weight or the batch norm's bias does.

    `example` is a tensor, a tuple of positional or a dict of keyword arguments, on which the model
    runs in eval mode; it must take the way that all inputs take, since a branch that it does not
    take is not seen. `where(path, batch_norm)` chooses among the batch norms. That both compute the
    same is proven on `example`, in float64 and, within `tolerance` (by default 1e-4 in
    float32), in the model's dtype. `model` stays as it is.

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
        raise SurgeryError(plan.why_nothing("folded", where=where, planner="plan_folding"))
    return plan.apply(model)


def plan_folding(
    model: nn.Module, example: Any, *, where: Where | None = None, tolerance: float | None = None
) -> Plan:
    """Return what `fold` would do to each batch norm, what it would leave alone and why.

    Raises as `fold` does, but not where nothing can be folded.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))
    >>> print(plan_folding(model, torch.ones(1, 2)).left_alone[0].why)
    before it: '2' (ReLU) stands between it and a weight layer; after it: what '3' (BatchNorm1d) \
makes leaves the model
    """
    found = survey(model, example, where=where)
    edits = tuple(fold_edit(match) for match in found.matches)
    stuck = [LeftAlone(candidate.path, candidate.kind, why) for candidate, why in found.stuck]
    left_alone = in_order_of(model, [*stuck, *found.left_alone])
    plan = Plan(edits, left_alone)
    return plan.verified(model, example, before=found.outcome, tolerance=tolerance)


def fold_edit(match: Match) -> Edit:
    """Return the edit that folds this match."""
    candidate, layers = match.candidate, [share.layer for share in match.shares]
    names = [layer.name for layer in layers]
    options: dict[str, Any] = {"target": names[0] if len(names) == 1 else names}
    options |= {"residual": candidate.adds_residual, "side": match.side}
    if match.unshifted:
        options["unshifted"] = match.unshifted
    values = {"features": torch.cat([share.features for share in match.shares])}
    kept = f", keep {candidate.activation}" if candidate.activation is not None else ""
    action = f"fold into {' and '.join(map(str, layers))}{kept}{of_domain(candidate)}"
    return Edit(candidate.path, candidate.kind, action, _why(match), "fold_away", options, values)


def of_domain(candidate: Candidate) -> str:
    """Return the words that say of which domain the statistics are, where there are several."""
    return f", of the domain {candidate.domain!r}" if candidate.domain else ""


def _why(match: Match) -> str:
    if match.candidate.owner == match.shares[0].layer.name:
        return f"it normalises the layer's own {'output' if match.side == 'before' else 'input'}"
    rules = [f"the layer{'s' if len(match.shares) > 1 else ''} {match.side} it"]
    if len(match.candidate.calls) > 1:
        rules.append(f"at each of its {len(match.candidate.calls)} calls")
    averages, sums, concatenations = (
        ", ".join(map(str, filter(is_kind, match.passages)))
        for is_kind in (is_averaging, is_summing, _is_concatenating)
    )
    if concatenations:
        rules.append(f"each for what it brings into {concatenations}")
    if sums:
        shifted = " and ".join(str(share.layer) for share in match.shares if share.shifts)
        rules.append(f"through {sums}: the shift goes into {shifted} only")
    if averages:
        rules.append(f"through {averages}, which averages or repeats the values of each channel")
    if match.passages and len(rules) == 1:
        rules.append(f"{len(match.passages)} calls away that only move values")
    return ", ".join(rules)


def _is_concatenating(call: Call) -> bool:
    return is_joining(call) and not is_summing(call)


def fold_pair(layer: nn.Module, batch_norm: nn.Module) -> nn.Module:
    """Return a copy of `layer` that computes in eval mode what `batch_norm` makes of its output.

    `layer` is a Linear or a conv of torch, of any rank, grouped or transposed; `batch_norm` is of
    as many features as it has outputs, with running statistics: torch's, bnkit's without an
    activation, or one of another library that computes what its state says. Weight and bias are
    computed in float64, with the scale γ/√(σ² + ε) (Ioffe and Szegedy 2015, algorithm 2), and have
    the dtype and device of the layer's weight; both train if they did, and a new bias trains if the
    layer's weight or the batch norm's bias does. Neither argument is touched. It is the arithmetic
    of `fold` alone, without a model around it, as of torch's `fuse_conv_bn_eval`.

    Raises TypeError for another kind of layer or batch norm, ValueError where the fold would not be
    exact: another number of features, no running statistics, an activation, values that are not
    finite, a weight that is computed, a layer in which hooks or a forward of its own do more.

    >>> conv, batch_norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8).eval()
    >>> folded_conv, x = fold_pair(conv, batch_norm), torch.randn(2, 3, 5, 5)
    >>> torch.allclose(folded_conv(x), batch_norm(conv(x)), atol=1e-6), conv.bias is None
    (True, True)
    """
    _refuse_pair(layer, batch_norm)
    made: Any = duplicate(layer)
    with torch.inference_mode(mode=False), torch.no_grad():
        features = torch.arange(features_out(layer))
        weight, bias = folded(batch_norm, made, side="before", features=features)
        if not all(map(_is_finite, (weight, bias))):
            raise ValueError(f"the weight or bias of `layer` would not be finite in {weight.dtype}")
        _ensure_bias(made, batch_norm)
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made  # type: ignore[no-any-return]  # duplicate returns what it is given


def _refuse_pair(layer: nn.Module, batch_norm: nn.Module) -> None:
    if not can_own_batch_norm(layer):
        raise TypeError(
            f"`layer` is a {type(layer).__name__}: pass a Linear or a conv layer (of any rank, "
            f"grouped or transposed)"
        )
    if isinstance(batch_norm, ActivatedNorm) and is_batch_norm(batch_norm.norm):
        raise ValueError(
            f"`batch_norm` ({type(batch_norm.norm).__name__}) cannot be folded: it ends in "
            f"{batch_norm.activation}, which no weight computes"
        )
    if not is_batch_norm(batch_norm):
        raise TypeError(f"`batch_norm` is a {type(batch_norm).__name__}: pass a batch norm")
    objection = objection_to_module(layer)
    if isinstance(layer, Normalized):
        objection = "it owns a batch norm already"
    if objection is not None:
        raise ValueError(f"`layer` ({type(layer).__name__}) cannot take it in: {objection}")
    objection = objection_to_eval_mode(batch_norm)
    if objection is None and (activation := activation_of(batch_norm)) is not None:
        name = name_of_activation(activation) or type(activation).__name__
        objection = f"it ends in {name}, which no weight computes"
    if objection is not None:
        raise ValueError(
            f"`batch_norm` ({type(batch_norm).__name__}) cannot be folded: {objection}"
        )
    features, made = len(affine_of(batch_norm).scale), features_out(layer)
    if features != made:
        raise ValueError(
            f"`batch_norm` has {features} features and `layer` makes {made}: they must be as many"
        )


# --- what can be folded into what


@dataclass
class Survey:
    """What the model gave, `matches` in the order in which they are to be folded, and the rest.

    `stuck` are those known in eval mode that no layer takes in, and why.
    """

    outcome: Outcome
    matches: list[Match] = field(default_factory=list)
    stuck: list[tuple[Candidate, str]] = field(default_factory=list)
    left_alone: list[LeftAlone] = field(default_factory=list)


def survey(model: nn.Module, example: Any, *, where: Where | None = None) -> Survey:
    """Return what can be folded into what, by one run of a copy of `model` on `example`."""
    subject = duplicate(model)
    return _survey(model, subject, *trace_itself(subject, example), where)


def survey_of(model: nn.Module, flow: Dataflow, outcome: Outcome) -> Survey:
    """Return what `survey` does, of a run of another copy of `model` that is known already."""
    subject = duplicate(model)
    return _survey(model, subject, flow.of(subject), outcome, None)


def _survey(
    model: nn.Module, subject: nn.Module, flow: Dataflow, outcome: Outcome, where: Where | None
) -> Survey:
    """Return it by this `flow` of `subject`, a copy of `model` that is used up."""
    found = Survey(outcome, left_alone=list(functional_batch_norms(flow)))
    known = []
    for candidate in find_candidates(subject, flow):
        objection = objection_to_batch_norm(candidate, flow)
        if objection is None and where is not None:
            chosen = where(candidate.path, model.get_submodule(candidate.path))
            objection = None if chosen else NOT_CHOSEN
        if objection is None:
            known.append(candidate)
        else:
            found.left_alone.append(LeftAlone(candidate.path, candidate.kind, objection))
    with knowing_holders(subject):
        _match(subject, flow, known, found)
    return found


def _match(subject: nn.Module, flow: Dataflow, candidates: list[Candidate], found: Survey) -> None:
    # In the order of the calls with layers before, then backwards with layers after: so a chain is
    # folded from its layer outwards. Each is folded in `subject` at once, for the next to see it.
    matcher = Matcher(flow, shared_parameters(subject))
    ready, waiting = [], []
    for candidate in candidates:
        objection = _objection_to_calls(candidate)
        if objection is None:
            ready.append(candidate)
        else:
            found.stuck.append((candidate, objection))
    for candidate in sorted(ready, key=lambda candidate: candidate.calls[0].index):
        reason = _fold(subject, matcher, matcher.before(candidate), found)
        if reason is not None:
            waiting.append((candidate, reason))
    for candidate, before in reversed(waiting):
        reason = _fold(subject, matcher, matcher.after(candidate), found)
        if reason is not None:
            found.stuck.append((candidate, f"before it: {before}; after it: {reason}"))


def _objection_to_calls(candidate: Candidate) -> str | None:
    if not candidate.calls:
        return "not called on this example in eval mode, or only inside a layer that is one step"
    if len(candidate.calls) > 1 and candidate.domain:
        return f"called {len(candidate.calls)} times in one forward, and it has several domains"
    for call in candidate.calls:
        given = arguments_of(call)[: 1 if candidate.owner is not None else None]
        if len(call.outputs) != 1 or not given or not all(type(part) is Value for part in given):
            return "called with more than tensors of the dataflow"
        if len(given) > 1 and not candidate.adds_residual:
            return "called with more than its input"
        if len(given) != len(set(given)):
            return "its residual is its own input"
    return None


def _fold(subject: nn.Module, matcher: Matcher, match: Match | str, found: Survey) -> str | None:
    """Fold this match in `subject` and note it, or return why not."""
    if isinstance(match, str):
        return match
    candidate, new = match.candidate, {}
    for share in match.shares:
        layer = share.layer.module
        assert layer is not None
        values = folded(
            *(candidate.module, layer),
            side=match.side,
            features=share.features,
            shifts=share.shifts,
        )
        if not all(map(_is_finite, values)):
            return f"the weight or bias of {share.layer} would not be finite in {values[0].dtype}"
        new[share.layer.name] = values
    unshifted, residual = match.unshifted, candidate.adds_residual
    _take_out(subject, candidate.path, new, unshifted=unshifted, residual=residual)
    if candidate.activation is None and not candidate.adds_residual:
        matcher.gone.add(candidate.path)
    found.matches.append(match)
    return None


def _is_finite(values: Tensor) -> bool:
    """Return whether all are finite, without a tensor of as many answers."""
    return not values.numel() or all(end.isfinite().item() for end in values.aminmax())


# --- the operation


def folded(
    batch_norm: nn.Module, layer: Any, *, side: Side, features: Tensor, shifts: bool = True
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of `layer` with `batch_norm` folded in, in the dtype of its weight.

    Feature i of the layer, of its output where it stands before the batch norm and else of its
    input, is channel `features[i]` of the batch norm (−1: none). Without `shifts`, only the scale
    is folded in.
    """
    affine = affine_of(batch_norm).take(features, like=layer.weight)
    if not shifts:
        affine = Affine(affine.scale, *[torch.zeros_like(affine.scale)] * 2)
    weight, bias = (after_layer if side == "before" else before_layer)(layer, affine)
    return weight, bias.to(weight.dtype)


@operation
def fold_away(
    model: nn.Module,
    layer: str,
    *,
    target: str | Sequence[str] | None = None,
    residual: bool = False,
    side: Side = "before",
    unshifted: Sequence[str] = (),
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Fold the batch norm at `layer` of `model` into the layers at `target`, in place.

    `values` holds "features" (see `folded`), those of several layers one after the other; without
    it the structure alone changes, as for a checkpoint that brings its weights. The targets stand
    on that `side` of the batch norm, and get a bias if they have none, which trains if their weight
    or the batch norm's bias does; but `unshifted` targets, whose outputs are added to those of
    others, take the scale only. What remains of the batch norm is its activation and, with
    `residual`, the sum before that; a layer that owned it gets its original class back.

    >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3))
    >>> fold_away(model, "1", target="0", values={"features": torch.arange(3)})
    >>> model
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): Identity()
    )
    """
    layer = path_of_norm(model, layer)
    targets = [target] if isinstance(target, str) else [*(target or ())]
    new: dict[str, tuple[Tensor, Tensor] | None] = dict.fromkeys(targets)
    if targets and values is not None:
        batch_norm, hosts = model.get_submodule(layer), [*map(model.get_submodule, targets)]
        features = values["features"]
        each = [features]
        if len(hosts) > 1:
            each = [*torch.split(features, [*map(features_out, hosts)])]
        for name, host, its in zip(targets, hosts, each, strict=True):
            shifts = name not in unshifted
            new[name] = folded(batch_norm, host, side=side, features=its, shifts=shifts)
    _take_out(model, layer, new, unshifted=unshifted, residual=residual)


@torch.no_grad()
def _take_out(
    model: nn.Module,
    layer: str,
    new: Mapping[str, tuple[Tensor, Tensor] | None],
    *,
    unshifted: Sequence[str],
    residual: bool,
) -> None:
    """Take the batch norm out, with `new` weights and biases, by the layers that take it in."""
    batch_norm = model.get_submodule(layer)
    for name, values in new.items():
        host: Any = model.get_submodule(name)
        if name not in unshifted:
            _ensure_bias(host, batch_norm)
        if values is not None:
            host.weight.copy_(values[0])
            if host.bias is not None:
                host.bias.copy_(values[1])
    activation = activation_of(batch_norm)
    owner = model.get_submodule(layer.rpartition(".")[0])
    if isinstance(owner, Normalized):
        give_class_back(owner)
    elif isinstance(owner, ActivatedNorm):  # what followed the batch norm takes its place
        ending = owner.activation
        disclose(owner, ResidualActivation(ending) if residual else activation_module(ending))
    else:
        rest: nn.Module = nn.Identity() if activation is None else activation
        if residual:
            rest = ResidualActivation(
                None if activation is None else name_of_activation(activation)
            )
        replace_module(model, layer, rest)


def give_class_back(layer: Normalized) -> None:
    """Make a layer that owns a batch norm what it was before, without it.

    >>> from bnkit import add
    >>> twin = add(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(4, 2))
    >>> give_class_back(twin[0])
    >>> twin[0]
    Linear(in_features=2, out_features=3, bias=False)
    """
    original: Any = original_class(layer)
    del layer.batchnorm, layer.batchnorm_layout
    layer.__class__ = original


def _ensure_bias(layer: Any, batch_norm: Any) -> None:
    if layer.bias is not None:
        return
    weight, shift = layer.weight, getattr(batch_norm, "bias", None)
    trains = weight.requires_grad or (shift is not None and shift.requires_grad)
    bias = nn.Parameter(weight.detach().new_zeros(features_out(layer)), requires_grad=trains)
    layer.register_parameter("bias", bias)
