"""Batch norm layers: torch's, with more to choose."""

from bnkit.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]
