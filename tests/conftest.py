"""Fixtures of several test files."""

from pathlib import Path

import pytest

from bnkit.kernels import choice


@pytest.fixture
def torchs_kernels(monkeypatch):
    """Let torch's kernels serve all, so that what is computed twice is equal to the last bit."""
    monkeypatch.setattr(choice, "forced", "torch")


@pytest.fixture
def importable_tests(monkeypatch):
    """Let the processes of trials find the functions of a test's own file."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
