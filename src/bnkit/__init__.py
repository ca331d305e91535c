"""Batch normalization for PyTorch over a model's whole life: add it, prove it, ship it."""

from bnkit import functional, layers
from bnkit.benchmarking import Benchmark, bench
from bnkit.checkpoints import load, save
from bnkit.dataflow import ExampleError
from bnkit.diagnosis import Diagnosis, Finding, diagnose
from bnkit.experiments.comparison import Interrupted, compare
from bnkit.experiments.settings import Settings
from bnkit.experiments.summary import Comparison
from bnkit.gap import Gap, explain_gap
from bnkit.kernels.choice import choose_kernel
from bnkit.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, domain, mask
from bnkit.moments import Moments
from bnkit.monitoring import Monitor
from bnkit.parameters import parameter_groups
from bnkit.recalibration import Recalibration, adapt, adapted, recalibrate, recalibrate_
from bnkit.report import write_diagnosis, write_report
from bnkit.surgery import (
    Plan,
    SurgeryError,
    accelerate,
    add,
    convert,
    fold,
    insert,
    rebind,
    remove,
    standardize,
)

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Benchmark",
    "Comparison",
    "Diagnosis",
    "ExampleError",
    "Finding",
    "Gap",
    "Interrupted",
    "Moments",
    "Monitor",
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
    "convert",
    "diagnose",
    "domain",
    "explain_gap",
    "fold",
    "functional",
    "insert",
    "layers",
    "load",
    "mask",
    "parameter_groups",
    "rebind",
    "recalibrate",
    "recalibrate_",
    "remove",
    "save",
    "standardize",
    "write_diagnosis",
    "write_report",
]
