"""The fixes that several rules build: of precision and statistics, and of the kind of a layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.diagnosis.evidence import Evidence, once
from bnkit.diagnosis.fix import Fix, Step, by_edit, in_turn
from bnkit.diagnosis.rules.reading import Reading, readings
from bnkit.internals import AnyBatchNorm
from bnkit.norms import why_frozen, why_incomparable
from bnkit.surgery.conversion import plan_conversion
from bnkit.surgery.conversion.kinds import find_kind
from bnkit.surgery.conversion.survey import Target, objection
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


def in_float32(reading: Reading) -> Fix | None:
    """Return the fix that puts the layer in float32; None for a function or another library's.

    Torch's batch norms take inputs in half precision all the same, and give them back in it.
    """
    if not isinstance(reading.module, AnyBatchNorm):
        return None
    return by_edit(edit(reading.path, "use_float32", "become float32"))


RECALIBRATE = "model = bnkit.recalibrate(model, batches)"


def how_to_measure(evidence: Evidence, reading: Reading) -> str:
    """Return the words on how to measure these statistics anew, with code that runs on the model.

    `bnkit.recalibrate` leaves layers alone that are frozen, or whose class it does not know.
    """
    module: Any = reading.module
    if module is None:
        why: str | None = "torch's function, which it does not see"
    else:
        why = why_incomparable(module) or why_frozen(evidence.model, module)
    if why is None:
        return RECALIBRATE
    if measuring_anew([reading]) is None:
        return f"write them into its buffers; bnkit.recalibrate does not: {why}"
    return f"model = diagnosis.fixed(model); bnkit.recalibrate does not: {why}"


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
    of_layers: dict[str, dict[str, Tensor]] = {}
    for path, value in values.items():
        layer, _, name = path.rpartition(".")
        of_layers.setdefault(layer, {})[name] = value
    edits = (
        edit(layer, "write_values", "measure statistics anew", values=own)
        for layer, own in of_layers.items()
    )
    return in_turn(*(by_edit(each, measures=True) for each in edits))


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
