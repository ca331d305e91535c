"""The tables of docs/accelerate.md, made from the figures that the benchmarks keep.

    python benchmarks/tables.py

Each stands between two comments with the name of its file, as `<!-- kernels.json -->`; what is
between them is written anew.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "accelerate.md"


def kernels(figures: dict[str, Any]) -> str:
    """Return a table for each number of threads, each with what was run, where and when."""
    return "\n\n".join(map(_of_threads, figures.values()))


def _of_threads(figures: dict[str, Any]) -> str:
    ran, summary, threads = figures["environment"], figures["summary"], figures["threads"]
    rows = [
        (
            "×".join(map(str, case["shape"])),
            case["layout"],
            *(_digits(ms[name]) for name in ("torch", "bnkit")),
            f"{ms['torch'] / ms['bnkit']:.1f}",
            f"{ms['torch'] / ms['bnkit, fresh memory']:.1f}",
            f"{ms['inference, torch'] / ms['inference, bnkit']:.1f}",
        )
        for case in figures["cases"]
        for ms in [case["milliseconds"]]
    ]
    headers = ("mini-batch", "layout", "torch, ms", "bnkit, ms", "times faster")
    means = (
        ("", "torch / bnkit"),
        (" with fresh memory", "torch / bnkit with fresh memory"),
        (" in inference", "inference: torch / bnkit"),
    )
    mean = ", ".join(f"{summary[key]:.1f}{what}" for what, key in means)
    return (
        f"{threads} thread{'s' * (threads > 1)}, {ran['processor']}, {ran['cores']} cores, torch "
        f"{ran['torch']}, {ran['date']}; geometric mean {mean}; the same program twice differed by "
        f"a factor of {summary['torch / itself, most']:.2f} at most.\n\n"
        f"{_table((*headers, 'with fresh memory', 'in inference'), rows)}"
    )


def training(figures: dict[str, Any]) -> str:
    """Return the table of whole steps."""
    rows = [
        (name, *(_digits(row["milliseconds"][each]) for each in ("torch", "bnkit", "without")))
        for name, row in figures["networks"].items()
    ]
    ran = figures["environment"]
    return (
        f"bnkit {ran['bnkit']}, {ran['threads']} threads, {ran['processor']}, torch "
        f"{ran['torch']}, {ran['date']}.\n\n"
        + _table(("network, batch 32", "torch, ms", "accelerated, ms", "without, ms"), rows)
    )


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"kernels": kernels, "training": training}


def page() -> str:
    """Return the page with the tables of the figures that are kept now; others stay as they are."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        kept = HERE / f"{name}.json"
        if not kept.exists():
            continue
        figures = json.loads(kept.read_text(encoding="utf-8"))
        mark = f"<!-- {name}.json -->"
        new = f"{mark}\n{table(figures)}\n{mark}\n"
        text, found = re.subn(f"{mark}\n.*?{mark}\n", lambda _: new, text, flags=re.DOTALL)  # noqa: B023  called at once
        assert found == 1, f"{PAGE} has {found} tables between {mark}"
    return text


def _table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [headers, ["---" for _ in headers], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
