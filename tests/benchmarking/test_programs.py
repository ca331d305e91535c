"""The programs in benchmarks/ are run by hand, and find what they import at any time."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what other packages import
@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_imports_what_there_is(path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as when it is run
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look their types up
    spec.loader.exec_module(module)
