"""Mends that many rules share: numbers, statistics, precision, and layers of another kind."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.diagnosis.evidence import Evidence, once
from bnkit.diagnosis.mend import Mend, altering, in_turn
from bnkit.diagnosis.rules.reading import Reading, readings
from bnkit.diagnosis.rules.structural_mends import become
from bnkit.internals import AnyBatchNorm
from bnkit.surgery import alterations
from bnkit.surgery.conversion.kinds import find_kind
from bnkit.surgery.conversion.survey import Target, objection


def converting(reading: Reading, kind: str, **options: Any) -> Mend | None:
    """Return the mend that converts the layer to another kind, the same in eval mode.

    None where `convert` would leave it alone: of what its class does beyond torch's it knows
    nothing.
    """
    target = Target(find_kind(kind), options)
    if reading.module is None or not reading.path or objection(reading.module, target, None):
        return None
    return become(kind, reading.path, **options)


def in_float32(reading: Reading) -> Mend | None:
    """Return the mend that puts the layer in float32; None for a function or another library's.

    Torch's batch norms take inputs in half precision all the same, and give them back in it.
    """
    if not isinstance(reading.module, AnyBatchNorm):
        return None

    def change(model: nn.Module) -> None:
        alterations.use_float32(model, reading.path)

    return altering(reading.path, "use_float32", change, action="become float32")


def setting_momentum(path: str, momentum: float) -> Mend:
    """Return the mend that gives the batch norm at this path another momentum.

    >>> setting_momentum("0", 0.01)(nn.Sequential(nn.BatchNorm1d(2, momentum=0.99)))[0].momentum
    0.01
    """

    def change(model: nn.Module) -> None:
        alterations.set_numbers(model, path, momentum=momentum)

    action = f"momentum = {momentum:g}"
    return altering(path, "set_numbers", change, action=action, needs=[path], momentum=momentum)


def writing(values: Mapping[str, Tensor]) -> Mend | None:
    """Return the mend that writes these values, which were measured, into the tensors so named.

    None where there are none. A name that the model does not have any more is left out.

    >>> model = nn.BatchNorm1d(1)
    >>> writing({"running_mean": torch.ones(1)})(model).running_mean
    tensor([1.])
    """
    layers = dict.fromkeys(name.rpartition(".")[0] for name in values)
    return in_turn(*(_writing_into(layer, values) for layer in layers))


def _writing_into(layer: str, values: Mapping[str, Tensor]) -> Mend:
    own = {name: value for name, value in values.items() if name.rpartition(".")[0] == layer}

    def change(model: nn.Module) -> None:
        held = dict(model.named_buffers(remove_duplicate=False))
        held |= dict(model.named_parameters(remove_duplicate=False))
        for name in own.keys() & held.keys():
            held[name].copy_(own[name])

    return altering(layer, "write_values", change, action="measure statistics anew", measures=True)


@once
def measuring_trained_anew(evidence: Evidence) -> Mend | None:
    """Return `measuring_anew` of all batch norms that training has updated, each if it was seen."""
    trained = (r for r in readings(evidence) if not (r.untouched or r.frozen))
    return in_turn(*(measuring_anew([reading]) for reading in trained))


def measuring_anew(found: Sequence[Reading]) -> Mend | None:
    """Return the mend that writes what was seen as trained over the running statistics.

    These are the moments of all inputs, pooled over the mini-batches as by `recalibrate`, with
    their unbiased variance. None where one of them was not seen or nothing holds its statistics,
    and where there are none.
    """
    values: dict[str, Tensor] = {}
    for reading in found:
        moments = reading.moments
        if moments is None or reading.running_mean is None or reading.running_var is None:
            return None
        if len(moments.mean) != len(reading.running_mean):
            return None
        values[reading.names["running_mean"]] = moments.mean
        values[reading.names["running_var"]] = moments.unbiased_variance
        if "num_batches_tracked" in reading.tensors:
            batches = sum(seen.batches for seen in reading.seen)
            values[reading.names["num_batches_tracked"]] = torch.tensor(batches)
    return writing(values)
