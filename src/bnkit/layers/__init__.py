"""Batch norm layers: torch's, with more to choose, and the kinds for other situations."""

from bnkit.layers.accumulated import (
    AccumulatedBatchNorm1d,
    AccumulatedBatchNorm2d,
    AccumulatedBatchNorm3d,
    reset_accumulation_,
)
from bnkit.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.layers.domains import (
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainBatchNorm3d,
    domain,
)
from bnkit.layers.exchange import SyncError, make_group
from bnkit.layers.frozen import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from bnkit.layers.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from bnkit.layers.masked import MaskedBatchNorm1d, MaskedBatchNorm2d, MaskedBatchNorm3d
from bnkit.layers.masks import mask
from bnkit.layers.recurrent import BatchNormLSTM, BatchNormLSTMCell
from bnkit.layers.renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, Ramp
from bnkit.layers.sync import SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d

__all__ = [
    "AccumulatedBatchNorm1d",
    "AccumulatedBatchNorm2d",
    "AccumulatedBatchNorm3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchNormLSTM",
    "BatchNormLSTMCell",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "DomainBatchNorm1d",
    "DomainBatchNorm2d",
    "DomainBatchNorm3d",
    "FrozenBatchNorm1d",
    "FrozenBatchNorm2d",
    "FrozenBatchNorm3d",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "MaskedBatchNorm1d",
    "MaskedBatchNorm2d",
    "MaskedBatchNorm3d",
    "Ramp",
    "SyncBatchNorm1d",
    "SyncBatchNorm2d",
    "SyncBatchNorm3d",
    "SyncError",
    "domain",
    "make_group",
    "mask",
    "reset_accumulation_",
]
