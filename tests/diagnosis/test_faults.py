"""Five faults, planted in networks that are trained here: found, and fixed; and the page on them.

The programs are those of benchmarks/faults.py, which trains on Fashion-MNIST, here on the digits.
"""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bnkit
from bnkit.experiments.data import load

ROOT = Path(__file__).parents[2]
PROGRAM = runpy.run_path(str(ROOT / "benchmarks" / "faults.py"))
FAULTS = PROGRAM["FAULTS"]
DIGITS = PROGRAM["Size"](
    images=1400, batch=50, epochs=2, maps=(8, 16), hidden=32, rate=0.05, diagnosed=20
)
# How many points more the fixed network has at least; the others cost little on the digits.
# The average needs an epoch in which the running statistics warm up.
PLANTED = {
    "average": (replace(DIGITS, batch=25), 3),
    "domains": (DIGITS, 3),
    "momentum": (DIGITS, -1),
    "last": (DIGITS, 3),
    "dropout": (DIGITS, -1),
}
PLACES = {
    "average": {"5", "10"},
    "domains": {"1", "5", "10"},
    "momentum": {"1", "5", "10"},
    "last": {"10"},
    "dropout": {"9", "11"},  # the dropout is layer 9
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_where_it_is_and_fixed(name):
    fault, (size, gain) = FAULTS[name], PLANTED[name]
    measured = PROGRAM["measure"](fault, PROGRAM["Task"](load("digits"), size, 0))
    layers = {
        path
        for found in measured["found"]
        if found["rule"] == fault.rule
        for path in found["layers"]
    }
    assert layers >= PLACES[name]
    assert layers <= PLACES[name] | {"1"}  # how stale the first layer is depends on the machine
    assert measured["afterwards"] == []
    assert measured["fixed"] >= measured["faulty"] + gain


@pytest.mark.parametrize("left", [0, 25])
def test_a_last_mini_batch_that_is_large_enough_is_no_finding(left):
    task = PROGRAM["Task"](load("digits"), replace(DIGITS, images=1000), 0)
    found = bnkit.diagnose(task.network(), task.loader(more=left), progress=False)
    assert [str(finding) for finding in found.at_least("warning")] == []


def test_a_small_last_mini_batch_is_no_other_distribution():
    # Its mean is off by chance far more than those of the others.
    torch.manual_seed(0)
    layer, rows = torch.nn.BatchNorm1d(4), torch.randn(1002, 4)
    found = bnkit.diagnose(layer, [*rows.split(100)], progress=False)
    assert {"several-distributions"}.isdisjoint(finding.rule for finding in found.findings)
    shifted = [batch + turn % 2 for turn, batch in enumerate(rows.split(100))]
    found = bnkit.diagnose(layer, shifted, progress=False)
    assert "several-distributions" in {finding.rule for finding in found.findings}


def test_the_page_is_made_from_the_kept_figures():
    figures = json.loads((ROOT / "benchmarks" / "faults.json").read_text())
    page = (ROOT / "docs" / "faults.md").read_text()
    assert PROGRAM["with_figures"](page, figures) == page
