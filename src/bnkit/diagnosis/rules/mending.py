"""Mends that many rules share: each makes a function from a model to a mended copy of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnkit.dataflow import duplicate
from bnkit.diagnosis.finding import Mend
from bnkit.diagnosis.rules.reading import Reading
from bnkit.diagnosis.rules.structural_mends import become
from bnkit.surgery.conversion.kinds import find_kind
from bnkit.surgery.conversion.survey import Target, objection

Change = Callable[[nn.Module], object]


def changing_layers(paths: Iterable[str], change: Change) -> Mend:
    """Return the mend that calls `change(layer)` on the layers of a copy at these paths.

    >>> mend = changing_layers(["0"], lambda layer: setattr(layer, "eps", 1.0))
    >>> model = nn.Sequential(nn.BatchNorm1d(2))
    >>> mend(model)[0].eps, model[0].eps
    (1.0, 1e-05)
    """
    chosen = tuple(dict.fromkeys(paths))

    def mend(model: nn.Module) -> nn.Module:
        changed = duplicate(model)
        with torch.inference_mode(mode=False), torch.no_grad():
            for path in chosen:
                change(changed.get_submodule(path))
        return changed

    return mend


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
    if not _is_of_torch(reading):
        return None
    return changing_layers([reading.path], lambda layer: layer.float())


def _is_of_torch(reading: Reading) -> bool:
    return isinstance(reading.module, _BatchNorm)


def writing(values: Mapping[str, Tensor]) -> Mend:
    """Return the mend that writes these values into the parameters and buffers of these names.

    >>> model = nn.BatchNorm1d(1)
    >>> writing({"running_mean": torch.ones(1)})(model).running_mean
    tensor([1.])
    """

    def mend(model: nn.Module) -> nn.Module:
        changed = duplicate(model)
        held = dict(changed.named_buffers(remove_duplicate=False))
        held |= dict(changed.named_parameters(remove_duplicate=False))
        with torch.inference_mode(mode=False), torch.no_grad():
            for name, value in values.items():
                held[name].copy_(value)
        return changed

    return mend


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
    return writing(values) if values else None
