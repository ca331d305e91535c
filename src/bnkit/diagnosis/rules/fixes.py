"""The fixes that rules build: of numbers, statistics and precision, and of the structure."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.diagnosis.evidence import Evidence, once
from bnkit.diagnosis.fix import Fix, Step, by_edit, in_turn
from bnkit.diagnosis.rules.reading import Reading, readings
from bnkit.internals import AnyBatchNorm
from bnkit.surgery.conversion import plan_conversion
from bnkit.surgery.conversion.kinds import find_kind
from bnkit.surgery.conversion.survey import Target, objection
from bnkit.surgery.folding.folding import plan_folding
from bnkit.surgery.operations import Edit
from bnkit.surgery.plan import Plan


def edit(
    layer: str,
    operation: str,
    action: str,
    options: Mapping[str, Any] | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> Edit:
    """Return the edit by this operation, which `by_edit` completes when it meets the model.

    >>> edit("0", "leave_out", "become Identity").structure
    {'operation': 'leave_out', 'layer': '0'}
    """
    return Edit(layer, "", action, "", operation, options or {}, values or {})


# --- numbers, statistics and precision


def in_float32(reading: Reading) -> Fix | None:
    """Return the fix that puts the layer in float32; None for a function or another library's.

    Torch's batch norms take inputs in half precision all the same, and give them back in it.
    """
    if not isinstance(reading.module, AnyBatchNorm):
        return None
    return by_edit(edit(reading.path, "use_float32", "become float32"))


def setting_momentum(path: str, momentum: float) -> Fix:
    """Return the fix that gives the batch norm at this path another momentum.

    >>> setting_momentum("0", 0.01)(nn.Sequential(nn.BatchNorm1d(2, momentum=0.99)))[0].momentum
    0.01
    """
    options = {"momentum": momentum}
    return by_edit(edit(path, "set_numbers", f"momentum = {momentum:g}", options), needs=[path])


def setting_eps(path: str, eps: float) -> Fix:
    """Return the fix that gives the batch norm another eps, and the weight that makes up for it.

    >>> norm = setting_eps("", 0.0)(nn.BatchNorm1d(1, eps=3.0))
    >>> norm.eps, norm.weight.item()
    (0.0, 0.5)
    """
    options = {"eps": eps, "rescale": True}
    return by_edit(edit(path, "set_numbers", f"eps = {eps:g}, and γ for it", options), needs=[path])


def writing(values: Mapping[str, Tensor]) -> Fix | None:
    """Return the fix that writes these values, which were measured, into the tensors so named.

    None where there are none. A name that the model does not have any more is left out.

    >>> model = nn.BatchNorm1d(1)
    >>> writing({"running_mean": torch.ones(1)})(model).running_mean
    tensor([1.])
    """
    of_layers: dict[str, dict[str, Tensor]] = {}
    for path, value in values.items():
        layer, _, name = path.rpartition(".")
        of_layers.setdefault(layer, {})[name] = value
    edits = (
        edit(layer, "write_values", "measure statistics anew", values=own)
        for layer, own in of_layers.items()
    )
    return in_turn(*(by_edit(each, measures=True) for each in edits))


@once
def measuring_trained_anew(evidence: Evidence) -> Fix | None:
    """Return `measuring_anew` of all batch norms that training has updated, each if it was seen."""
    trained = (r for r in readings(evidence) if not (r.untouched or r.frozen))
    return in_turn(*(measuring_anew([reading]) for reading in trained))


def measuring_anew(found: Sequence[Reading]) -> Fix | None:
    """Return the fix that writes what was seen as trained over the running statistics.

    These are the moments of all inputs, pooled over the mini-batches as by `recalibrate`, with
    their unbiased variance. None where one of them was not seen or nothing holds its statistics,
    and where there are none.
    """
    values: dict[str, Tensor] = {}
    for reading in found:
        compared = reading.compared
        if compared is None:
            return None
        values[reading.names["running_mean"]] = compared.given.mean
        values[reading.names["running_var"]] = compared.given.unbiased_variance
        if "num_batches_tracked" in reading.tensors:
            values[reading.names["num_batches_tracked"]] = torch.tensor(compared.batches)
    return writing(values)


# --- the structure


def without_bias(layer: str, norms: Mapping[str, Tensor]) -> Fix:
    """Return the fix that takes the bias off `layer` and out of the running means after it.

    `norms` says by the path of a batch norm in which of its channels each feature of the layer
    lies, −1 for none. The model computes the same in both modes.
    """
    return by_edit(edit(layer, "drop_bias", "drop the bias", values=norms), needs=[*norms])


def without_dropout(path: str) -> Fix:
    """Return the fix that puts an identity where a dropout is: the same in eval mode."""
    return by_edit(edit(path, "leave_out", "become Identity"))


def merging(first: str, second: str) -> Fix:
    """Return the fix that gives the first batch norm the affine map of the second as well.

    The second becomes an identity. The model computes the same in eval mode.
    """
    merged = edit(second, "merge_norms", f"merge into '{first}'", {"into": first})
    return by_edit(merged, needs=[first, second])


def one_for_each_place(paths: list[str]) -> Fix | None:
    """Return the fix that puts a copy of the module at paths[0] at each other one of `paths`.

    The model computes the same in eval mode. None for a single path.
    """
    return in_turn(
        *(by_edit(edit(path, "unshare", "become a copy"), needs=[path]) for path in paths[1:])
    )


def turning_signs(layer: str, norm: str, channels: Tensor) -> Fix:
    """Return the fix that makes every γ of `norm` positive, where `layer` alone feeds it.

    `channels` says in which channel each feature of the layer lies, −1 for none.
    """
    turned = edit(norm, "turn_signs", "turn signs", {"feeding": layer}, {"channels": channels})
    return by_edit(turned, needs=[norm])


def converting(reading: Reading, kind: str, **options: Any) -> Fix | None:
    """Return the fix that converts the layer to another kind, the same in eval mode.

    None where `convert` would leave it alone: of what its class does beyond torch's it knows
    nothing.
    """
    target = Target(find_kind(kind), options)
    if reading.module is None or not reading.path or objection(reading.module, target, None):
        return None
    return become(kind, reading.path, **options)


def become(kind: str, path: str, **options: Any) -> Fix:
    """Return the fix that converts the batch norm at `path` to another kind, the same in eval."""

    def plan(model: nn.Module) -> Plan:
        return plan_conversion(model, kind, where=lambda found, _: found == path, **dict(options))

    return Fix((Step(plan),))


def folding_away(paths: list[str], example: Any) -> Fix:
    """Return the fix that folds these batch norms into weight layers: the same in eval mode."""
    chosen = frozenset(paths)
    return Fix(
        (Step(lambda model: plan_folding(model, example, where=lambda path, _: path in chosen)),)
    )
