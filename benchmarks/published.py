"""Run published experiments on MNIST, and put their figures beside ours in the docs.

    python benchmarks/published.py --data-dir FOLDER experiment [experiment ...]

Results are kept in bnkit-published and gone on from (`bnkit reproduce --list` names the
experiments). The figures go to docs/published.json, the table in docs/published.md is made from
them.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from bnkit.lab.experiments.experiment import Repetition
from bnkit.lab.experiments.reproduction import (
    HEADERS,
    Reproduced,
    Reproduction,
    reproduce,
    reproduction,
)
from bnkit.lab.experiments.table import EXPERIMENTS
from bnkit.lab.names import one_of
from bnkit.report.writing import put, strict_json

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "published.json"
PAGE = ROOT / "docs" / "published.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->"


def main() -> None:
    table = {experiment.name: experiment for experiment in EXPERIMENTS}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="experiment", help="those that are run")
    parser.add_argument("--data-dir", type=Path, help="folder of the MNIST files")
    parser.add_argument("--seeds", type=int, help="runs of each; its own number by default")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, default=Path("bnkit-published"))
    options = parser.parse_args()
    chosen = [one_of(table, name, "experiment") for name in options.names]
    chosen += [each for each in EXPERIMENTS if each.needs and each not in chosen]
    how = Repetition(options.out, options.data_dir, options.seeds, options.jobs)
    for found in reproduce(chosen, how):  # kept one by one: all of them take hours
        figures = merged(reproduction([found]))
        put(FIGURES, (strict_json(figures.to_json()) + "\n").encode())
        before, _, rest = PAGE.read_text().partition(BEGIN)
        page = before + BEGIN + "\n".join(lines(figures.figures)) + "\n" + END
        PAGE.write_text(page + rest.partition(END)[2])


def merged(found: Reproduction) -> Reproduction:
    """Return what was kept before, with what was measured now in its place, in the list's order."""
    before = Reproduction.from_json(json.loads(FIGURES.read_text())) if FIGURES.exists() else found
    fresh = {each.experiment for each in found.figures}
    kept = [each for each in before.figures if each.experiment not in fresh]
    order = [experiment.name for experiment in EXPERIMENTS]
    figures = sorted([*kept, *found.figures], key=lambda each: order.index(each.experiment))
    return Reproduction(found.environment, tuple(figures))


def lines(figures: Iterable[Reproduced]) -> Iterable[str]:
    """Yield the lines of the Markdown table; an experiment is named once."""
    yield f"| {' | '.join(HEADERS)} |"
    yield "|---" * len(HEADERS) + "|"
    before = ""
    for each in figures:
        name, *cells = each.row
        yield f"| {'' if each.experiment == before else name} | {' | '.join(cells)} |"
        before = each.experiment


if __name__ == "__main__":
    main()
