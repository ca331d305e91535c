"""Batch normalization for PyTorch over a model's whole life: add it, prove that it helps."""

from bnkit import functional
from bnkit.dataflow import ExampleError
from bnkit.lab.comparison import Interrupted, compare
from bnkit.lab.settings import Settings
from bnkit.lab.summary import Comparison
from bnkit.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.moments import Moments
from bnkit.report import write_report
from bnkit.surgery import Plan, SurgeryError, add

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Comparison",
    "ExampleError",
    "Interrupted",
    "Moments",
    "Plan",
    "Settings",
    "SurgeryError",
    "add",
    "compare",
    "functional",
    "write_report",
]
