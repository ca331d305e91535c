"""Fixtures of several test files."""

from pathlib import Path

import pytest
import torch

from bnkit.kernels import choice

# The core is built with a header that torch 2.9 does not have yet: torch's kernels serve there.
collect_ignore = ["kernels/test_core.py"] if torch.__version__ < "2.13" else []


@pytest.fixture
def torchs_kernels(monkeypatch):
    """Let torch's kernels serve all, so that what is computed twice is equal to the last bit."""
    monkeypatch.setattr(choice, "forced", "torch")


@pytest.fixture
def importable_tests(monkeypatch):
    """Let the processes of trials find the functions of a test's own file."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])


@pytest.fixture
def trials_here(request, monkeypatch):
    """Run trials in this process: starting others takes seconds, so that few tests do, for all."""

    def run_here(trials, store, *, on_result, **_options):
        found = {trial.key: store.keep(trial.run()) for trial in trials}
        for result in found.values():
            on_result(result)
        return found

    if "in_processes" not in request.fixturenames:
        monkeypatch.setattr("bnkit.experiments.sweep.run_trials", run_here)


@pytest.fixture
def in_processes(importable_tests):
    """Run trials as users do, also where `trials_here` is asked for."""
