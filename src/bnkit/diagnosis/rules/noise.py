"""Rules on statistics of too few independent values: in one process, and over several ranks."""

import math
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import nn

from bnkit.diagnosis.evidence import Evidence, Seen
from bnkit.diagnosis.finding import Finding
from bnkit.diagnosis.rules.fixes import converting
from bnkit.diagnosis.rules.reading import HALF, QUARTER, Reading, readings
from bnkit.diagnosis.rules.staleness import change_by, is_young
from bnkit.diagnosis.rules.uses import smallest_mini_batch
from bnkit.layers.accumulated import AccumulatedBatchNorm
from bnkit.layers.ghost import GhostBatchNorm
from bnkit.layers.renorm import BatchRenorm
from bnkit.layers.sync import SynchronisedBatchNorm

# Fewer mini-batches are an example, not the data of a training.
_SOME = 4


def noisy_statistics(evidence: Evidence) -> Iterator[Finding]:
    """Find layers that are trained by the statistics of too few independent values.

    Either all mini-batches have too few, or the last one of each epoch has. It is a warning where
    chance moves the output of the model, too; of a network that has not been trained, and a few
    mini-batches, which may be smaller than those of its training, it is information.
    """
    if evidence.in_eval_mode:
        return
    always, sometimes = _noisy(evidence), _noisy_in_the_smallest(evidence)
    of_model = moved_by_chance(evidence, {r: n for r, n in always.items() if noise_of(n) > HALF})
    for reading, values in always.items():
        noise = noise_of(values)
        moves = noise > HALF and (of_model is None or of_model >= QUARTER)
        harms = moves and not (is_young(reading) and len(evidence.loader.rows) < _SOME)
        yield Finding(
            "noisy-statistics",
            "warning" if harms else "info",
            (reading.path,),
            {**_figures(values), **(_of_model(of_model) if noise > HALF else {})},
            "The statistics of a mini-batch are worth those of few independent values per "
            "channel: chance moves the output by such a share of its size."
            + (" The mini-batches of training may be larger." if moves and not harms else ""),
            "Use larger mini-batches, synchronise the ranks, or correct by running "
            'statistics: model = bnkit.convert(model, "renorm").',
            converting(reading, "renorm") if harms else None,
        )
    of_model = moved_by_chance(evidence, {r: values for r, (values, _) in sometimes.items()})
    for reading, (values, seen) in sometimes.items():
        yield Finding(
            "noisy-statistics",
            "warning" if of_model is None or of_model >= QUARTER else "info",
            (reading.path,),
            {**smallest_mini_batch(evidence, seen), **_figures(values), **_of_model(of_model)},
            "One mini-batch is much smaller than the others. By its statistics chance moves the "
            "output by such a share of its size, the step goes astray, and the running statistics "
            "take it for as much as any other; the last one of an epoch comes right before the "
            "evaluation.",
            "Leave the last incomplete mini-batch out: drop_last=True of the DataLoader. A model "
            "that was trained with it needs more training: bnkit.recalibrate corrects its "
            "statistics only.",
        )


def _figures(values: float) -> dict[str, float]:
    return {"effective values per channel": values, "output noise": noise_of(values)}


def _of_model(moved: float | None) -> dict[str, float]:
    return {} if moved is None else {"of the model": moved}


def _noisy(evidence: Evidence) -> dict[Reading, float]:
    """Return the layers of too few values in all mini-batches, and how many they are worth."""
    values = {r: effective_values(r) for r in readings(evidence) if not r.frozen}
    return {r: n for r, n in values.items() if n is not None and noise_of(n) > QUARTER}


def _noisy_in_the_smallest(evidence: Evidence) -> dict[Reading, tuple[float, Seen]]:
    """Return the layers that have far too few in the smallest one only, with what they saw."""
    found = {}
    for reading in readings(evidence):
        if reading.frozen or not reading.seen or noise_of(effective_values(reading)) > QUARTER:
            continue
        seen = min(reading.seen, key=_smallest_share)
        values = effective_values(reading, share=_smallest_share(seen))
        if values is not None and noise_of(values) > HALF:
            found[reading] = values, seen
    return found


def moved_by_chance(evidence: Evidence, values: Mapping[Reading, float]) -> float | None:
    """Return how far the model's output moves where these layers draw so many values by chance.

    The mean of n values has the variance σ²/n, and their variance, for normal ones, 2σ⁴/n; one
    draw of both is taken for each channel. None where nothing is to be run.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for reading, count in values.items():
        compared = reading.compared
        if compared is None:
            continue
        mean, variance = compared.given.mean, compared.given.variance
        of_mean, of_variance = torch.randn(2, len(mean), generator=generator).to(mean)
        drawn[reading] = (
            mean + (variance / count).sqrt() * of_mean,
            variance * (1 + math.sqrt(2 / count) * of_variance).clamp(min=0.1),
        )
    return change_by(evidence, drawn) if drawn else None


def _smallest_share(seen: Seen) -> float:
    """Return what the smallest mini-batch had of the values that one had on average."""
    return seen.fewest * seen.batches / seen.moments.count


def noise_of(values: float | None) -> float:
    """Return √(1.5/n), how far the statistics of n values move an output; 0 for None.

    >>> noise_of(6.0)
    0.5
    """
    return 0.0 if values is None else math.sqrt(1.5 / values)


def effective_values(reading: Reading, *, share: float = 1.0) -> float | None:
    """Return how many independent values per channel a mini-batch is worth to this layer.

    With `share`, one of this share of the rows that the mini-batches have on average.

    Values of one row are alike: B rows whose means have the variance s² give the mean of a
    mini-batch the variance s²/B, which v·B/s² independent values of variance v would give. It is
    the median over the channels, None where it was not seen or statistics come from elsewhere.
    """
    if isinstance(reading.module, BatchRenorm) or not reading.seen:
        return None
    found = [_effective(reading, seen, share) for seen in reading.seen]
    return min((values for values in found if values is not None), default=None)


def _effective(reading: Reading, seen: Seen, share: float) -> float | None:
    variance, of_rows = seen.moments.variance, seen.of_rows.variance
    varying = (variance > 0) & variance.isfinite() & of_rows.isfinite()
    if not bool(varying.any()):
        return None
    rows = _rows_of_statistics(reading, share * seen.of_rows.count / seen.batches)
    most = rows * seen.moments.count / seen.of_rows.count
    ratio = (variance[varying] / of_rows[varying].clamp_min(1e-300)).median().item()
    return min(rows * ratio, most)


def _rows_of_statistics(reading: Reading, rows: float) -> float:
    """Return the rows whose statistics are taken together, of `rows` in a mini-batch."""
    module = reading.module
    if isinstance(module, GhostBatchNorm):
        return min(rows, module.virtual_batch_size)
    return rows * module.micro_batches if isinstance(module, AccumulatedBatchNorm) else rows


# Several ranks


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
        alone = "There is one rank" if world_size() else "Torch.distributed is not initialised"
        yield Finding(
            "sync-without-group",
            "warning" if noisy else "info",
            (reading.path,),
            {"ranks": world_size(), **_measured(values)},
            f"{alone}, so the layer is a plain batch norm"
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
