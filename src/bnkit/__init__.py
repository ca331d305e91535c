"""Batch normalization for PyTorch over a model's whole life: add it, prove that it helps."""

from bnkit import functional, layers
from bnkit.bench import Benchmark, bench
from bnkit.dataflow import ExampleError
from bnkit.kernels.choice import choose_kernel
from bnkit.lab.comparison import Interrupted, compare
from bnkit.lab.settings import Settings
from bnkit.lab.summary import Comparison
from bnkit.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, domain, mask
from bnkit.moments import Moments
from bnkit.parameters import parameter_groups
from bnkit.recalibration import Recalibration, adapt, adapted, recalibrate, recalibrate_
from bnkit.report import write_report
from bnkit.surgery import Plan, SurgeryError, accelerate, add, insert

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Benchmark",
    "Comparison",
    "ExampleError",
    "Interrupted",
    "Moments",
    "Plan",
    "Recalibration",
    "Settings",
    "SurgeryError",
    "accelerate",
    "adapt",
    "adapted",
    "add",
    "bench",
    "choose_kernel",
    "compare",
    "domain",
    "functional",
    "insert",
    "layers",
    "mask",
    "parameter_groups",
    "recalibrate",
    "recalibrate_",
    "write_report",
]
