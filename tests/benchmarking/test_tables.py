"""The tables of docs/accelerate.md are those of the figures that are kept."""

import runpy
from pathlib import Path

from bnkit.benchmarking import Case, bench

ROOT = Path(__file__).parents[2]
TABLES = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))


def test_the_page_has_the_figures_that_are_kept():
    assert TABLES["page"]() == TABLES["PAGE"].read_text(encoding="utf-8")


def test_a_table_says_where_and_how_it_was_measured():
    result = bench([Case((8, 4)), Case((2, 4, 3, 3), channels_last=True)], seconds=0.0)
    table = TABLES["kernels"]({"1 threads": result.to_json()})
    assert f"torch {result.environment['torch']}" in table
    assert "geometric mean" in table
    rows = [line.split(" | ") for line in table.splitlines() if "×" in line]
    assert [row[:2] for row in rows] == [
        ["| 8×4", "channels first"],
        ["| 2×4×3×3", "channels last"],
    ]
    for row, measured in zip(rows, result.measurements, strict=True):
        assert row[4] == f"{measured.ratio('torch'):.1f}"
