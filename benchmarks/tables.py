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
    """Return what was run, where and when, for each number of threads, and one table of the cases.

    The milliseconds are those of the first number of threads, and the last columns the ratios of
    the others.
    """
    first, *others = figures.values()
    ratios = [[_ratio(case) for case in other["cases"]] for other in others]
    rows = [
        (
            "×".join(map(str, case["shape"])),
            case["layout"],
            *(_digits(case["milliseconds"][name]) for name in ("torch", "bnkit")),
            _ratio(case),
            _ratio(case, ", fresh memory"),
            _ratio(case, theirs="inference, torch", ours="inference, bnkit"),
            *more,
        )
        for case, *more in zip(first["cases"], *ratios, strict=True)
    ]
    headers = ("mini-batch", "layout", "torch, ms", "bnkit, ms", "times faster")
    headers = (*headers, "with fresh memory", "in inference")
    headers = (*headers, *(f"on {other['threads']} threads" for other in others))
    return "\n".join([*map(_of_threads, figures.values()), "", _table(headers, rows)])


def _ratio(case: dict[str, Any], more: str = "", theirs: str = "torch", ours: str = "bnkit") -> str:
    return f"{case['milliseconds'][theirs] / case['milliseconds'][ours + more]:.1f}"


def _of_threads(figures: dict[str, Any]) -> str:
    ran, summary, threads = figures["environment"], figures["summary"], figures["threads"]
    means = (
        ("", "torch / bnkit"),
        (" with fresh memory", "torch / bnkit with fresh memory"),
        (" in inference", "inference: torch / bnkit"),
    )
    mean = ", ".join(f"{summary[key]:.1f}{what}" for what, key in means)
    return (
        f"- {threads} thread{'s' * (threads > 1)}, {ran['processor']}, {ran['cores']} cores, torch "
        f"{ran['torch']}, {ran['date']}: geometric mean {mean}; the same program twice differed by "
        f"a factor of {summary['torch / itself, most']:.2f} at most."
    )


def core(figures: dict[str, Any]) -> str:
    """Return the table of whole steps of small networks, over the same steps without batch norm."""
    threads = {name: part for name, part in figures.items() if name.endswith("threads")}
    by_network = "small networks, milliseconds"
    rows = [
        (
            network,
            *(
                f"{part[by_network][network][which] / part[by_network][network]['without']:.2f}"
                for part in threads.values()
                for which in ("torch", "bnkit")
            ),
        )
        for network in next(iter(threads.values()))[by_network]
    ]
    means = [part["step over step without, geometric mean"] for part in threads.values()]
    mean = [f"{each[which]:.2f}" for each in means for which in ("torch", "bnkit")]
    heads = [f"{which}, {_threads(name)}" for name in threads for which in ("torch", "bnkit")]
    ran, built = figures["environment"], figures["set-up"]
    calls = "; ".join(
        f"{part['dispatch, microseconds']['bnkit']:.0f} µs beside torch's "
        f"{part['dispatch, microseconds']['torch']:.0f} on {_threads(name)}"
        for name, part in threads.items()
    )
    return (
        f"{ran['processor']}, {ran['cores']} cores, torch {ran['torch']}, {ran['date']}. A layer "
        f"with ReLU on (8, 8), forward and backward: {calls}. The core was built in "
        f"{built['seconds to build']:.0f} s and has {built['bytes of the core'] / 1e6:.1f} MB.\n\n"
        + _table(("step over step without", *heads), [*rows, ("geometric mean", *mean)])
    )


def _threads(name: str) -> str:
    return "1 thread" if name == "1 threads" else name


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


Tables = dict[str, Callable[[dict[str, Any]], str]]
TABLES: Tables = {"kernels": kernels, "core": core, "training": training}


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
