"""`Sample`: what is known of a layer's inputs; pooled over the processes of torch.distributed."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from bnkit.batches import NoBatchesError
from bnkit.internals import AnyBatchNorm
from bnkit.layers.exchange import Place, Ranks, SyncError, exchange
from bnkit.moments import Moments

Layers = Mapping[str, AnyBatchNorm]


@dataclass(frozen=True, eq=False)
class Sample:
    """The pooled moments of a layer's inputs, how many inputs those were, and of how many rows.

    `calls` is the largest number of inputs in one forward.
    """

    moments: Moments
    inputs: int
    rows: int
    calls: int = 0

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(
            self.moments + other.moments,
            self.inputs + other.inputs,
            self.rows + other.rows,
            max(self.calls, other.calls),
        )

    @property
    def unbiased_variance(self) -> Tensor:
        """The unbiased variance, (C,), and 0 where one value per channel has none."""
        moments = self.moments
        return moments.unbiased_variance if moments.count > 1 else moments.deviations


Samples = dict[str, Sample]

_FAILED, _WELL = 0, 1
_NAME = "(statistics of all ranks)"  # what errors of the exchange call us


def over_all_ranks(
    layers: Layers, measure: Callable[[], Samples], group: ProcessGroup | None, *, turn: int
) -> Samples:
    """Return what `measure()` returns, pooled over all ranks of `group`, the same on each.

    A process that is alone measures and no more. A rank may be without mini-batches. An error on
    one rank passes through there; the others raise RuntimeError, which names that rank. `turn` is
    the number of the pass. Raises NoBatchesError where no rank has a mini-batch, and SyncError
    where another one has died, is elsewhere or does not come within the limit of the group.
    """
    if Ranks(group).is_alone(_NAME):
        return measure()
    place = Place(_NAME, turn, "forward", sum(layer.num_features for layer in layers.values()))
    try:
        own = measure()
    except NoBatchesError:
        own = {}
    except Exception:
        with suppress(SyncError):  # the error of this rank is the one to tell
            exchange(_FAILED, _packed({}, layers), place, group)
        raise
    standings, shares = exchange(_WELL, _packed(own, layers), place, group)
    failed = [str(rank) for rank, standing in enumerate(standings) if standing == _FAILED]
    if failed:
        raise RuntimeError(
            f"rank {', '.join(failed)} stopped with an error while it measured statistics, and all "
            f"ranks are needed: its own message says why; nothing has changed on this one"
        )
    pooled = _pooled(shares, layers)
    if not pooled:
        raise NoBatchesError("`batches` gave no mini-batch on any rank: pass at least one")
    return pooled


def _packed(samples: Samples, layers: Layers) -> Tensor:
    """Return the samples of all layers in one vector, which has the same length on all ranks.

    A layer has count, inputs, rows, calls and its place in the order, then mean and deviations.
    """
    places = {path: place for place, path in enumerate(samples)}
    vector = torch.zeros(sum(_lengths(layers)), dtype=torch.float64)
    for path, part in zip(layers, torch.split(vector, _lengths(layers)), strict=True):
        if path in samples:
            sample = samples[path]
            numbers = (sample.moments.count, sample.inputs, sample.rows, sample.calls, places[path])
            part[:5] = torch.tensor(numbers)
            part[5:] = torch.cat([sample.moments.mean, sample.moments.deviations])
    return vector


def _pooled(shares: list[Tensor], layers: Layers) -> Samples:
    """Return what the ranks have packed, pooled, in the order in which the layers first ran."""
    pooled: Samples = {}
    for share in shares:
        parts = zip(layers, torch.split(share, _lengths(layers)), strict=True)
        for path, part in sorted(parts, key=lambda of_layer: of_layer[1][4].item()):
            count, inputs, rows, calls = map(int, part[:4].tolist())
            if count:
                sample = Sample(Moments(count, *part[5:].chunk(2)), inputs, rows, calls)
                pooled[path] = pooled[path] + sample if path in pooled else sample
    return pooled


def _lengths(layers: Layers) -> list[int]:
    return [5 + 2 * layer.num_features for layer in layers.values()]
