"""Batch normalization for PyTorch over a model's whole life: add it, prove it, ship it."""

import importlib
from typing import Any

from bnkit import functional as functional
from bnkit import layers as layers
from bnkit.deprecation import find_renamed_modules

__version__ = "0.2.0"

find_renamed_modules()

# Where each public name lives. What is not a layer is imported when it is first asked for;
# __init__.pyi says the same to type checkers.
_HOMES = {
    "BatchNorm1d": "layers",
    "BatchNorm2d": "layers",
    "BatchNorm3d": "layers",
    "Benchmark": "benchmarking",
    "Comparison": "experiments.summary",
    "Diagnosis": "diagnosis",
    "ExampleError": "dataflow",
    "Finding": "diagnosis",
    "Gap": "train_eval_gap",
    "Interrupted": "experiments.sweep",
    "Moments": "moments",
    "Monitor": "monitoring",
    "Plan": "surgery",
    "Recalibration": "recalibration",
    "Settings": "experiments.settings",
    "SurgeryError": "surgery",
    "accelerate": "surgery",
    "adapt": "recalibration",
    "adapted": "recalibration",
    "add": "surgery",
    "bench": "benchmarking",
    "choose_kernel": "kernels.choice",
    "compare": "experiments.comparison",
    "convert": "surgery",
    "diagnose": "diagnosis",
    "domain": "layers",
    "explain_gap": "train_eval_gap",
    "fold": "surgery",
    "fold_pair": "surgery",
    "insert": "surgery",
    "load": "checkpoints",
    "mask": "layers",
    "parameter_groups": "parameters",
    "rebind": "surgery",
    "recalibrate": "recalibration",
    "recalibrate_": "recalibration",
    "remove": "surgery",
    "save": "checkpoints",
    "standardize": "surgery",
    "write_diagnosis": "report",
    "write_report": "report",
}

__all__ = sorted([*_HOMES, "functional", "layers"])  # noqa: PLE0605  a list of names all the same


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"bnkit.{_HOMES[name]}"), name)
    elif name.startswith("_"):
        raise AttributeError(f"module 'bnkit' has no attribute {name!r}")
    else:
        value = _package(name)
    globals()[name] = value
    return value


def _package(name: str) -> Any:
    try:
        return importlib.import_module(f"bnkit.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"bnkit.{name}":
            raise
        raise AttributeError(f"module 'bnkit' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
