"""Rules on several ranks: batch norms that are not synchronised, or that have nobody to meet."""

from collections.abc import Iterator

import torch.distributed as dist
from torch import nn

from bnkit.diagnosis.evidence import Evidence
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules.fixes import converting
from bnkit.diagnosis.rules.noise import effective_values, noise_of
from bnkit.diagnosis.rules.reading import QUARTER, Reading, readings
from bnkit.layers.sync import SynchronisedBatchNorm

_SYNCHRONISED = (nn.SyncBatchNorm, SynchronisedBatchNorm)


def unsynchronised(evidence: Evidence) -> Iterator[Finding]:
    """Find batch norms that each rank trains by its own few samples."""
    if world_size() < 2 and not evidence.parallel:
        return
    for reading in _trained(evidence):
        values = effective_values(reading)
        enough = values is not None and noise_of(values) <= QUARTER
        if enough or isinstance(reading.module, _SYNCHRONISED):
            continue
        yield Finding(
            "unsynchronised",
            "info" if values is None else "warning",
            (reading.path,),
            {"ranks": world_size(), **_measured(values)},
            "Each rank normalises by the samples of its own mini-batch only"
            + ("." if values is None else ", which is too small for them."),
            'Let the ranks share statistics: model = bnkit.convert(model, "sync").',
            converting(reading, "sync"),
        )


def sync_without_group(evidence: Evidence) -> Iterator[Finding]:
    """Find synchronised batch norms where there is no other rank, so that they act alone."""
    if world_size() > 1:
        return
    for reading in _trained(evidence):
        if not isinstance(reading.module, _SYNCHRONISED):
            continue
        values = effective_values(reading)
        noisy = noise_of(values) > QUARTER
        reason = (
            "torch.distributed is not initialised" if world_size() == 0 else "there is one rank"
        )
        yield Finding(
            "sync-without-group",
            "warning" if noisy else "info",
            (reading.path,),
            {"ranks": world_size(), **_measured(values)},
            f"{reason[0].upper()}{reason[1:]}, so the layer is a plain batch norm"
            + (", by a mini-batch that is too small alone." if noisy else "."),
            "Call torch.distributed.init_process_group first, or make it plain: "
            'model = bnkit.convert(model, "torch").',
            converting(reading, "torch"),
        )


def world_size() -> int:
    """Return the number of ranks of torch.distributed, 0 where it is not initialised.

    >>> world_size()
    0
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 0


def _trained(evidence: Evidence) -> list[Reading]:
    if evidence.in_eval_mode:
        return []
    return [r for r in readings(evidence) if r.norm is not None and not r.frozen]


def _measured(values: float | None) -> dict[str, float]:
    return {} if values is None else {"effective values per channel": values}
