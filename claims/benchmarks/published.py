"""Run published experiments on MNIST, and put their figures beside ours in the docs.

    python claims/benchmarks/published.py --data-dir FOLDER experiment [experiment ...]

Results are kept in bnkit-published; run the same command to resume. `bnkit reproduce --list` names
the experiments. In claims/docs the figures go to published.json, and the table in published.md is
made from them.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bnkit.experiments.results import SIDES, Side
from bnkit.files import strict_json, write_atomically
from bnkit.names import one_of
from bnkit.report.charts import export
from bnkit_claims.core.cases import Repetition
from bnkit_claims.core.charts import Axis, Dot, Dots, Rule, ranged
from bnkit_claims.published.all_experiments import EXPERIMENTS
from bnkit_claims.published.experiment import quantity
from bnkit_claims.published.reproduction import (
    HEADERS,
    Reproduced,
    Reproduction,
    reproduction,
)
from bnkit_claims.report.claim_charts import drawn

NEAR = 0.5  # points
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
    for experiment in chosen:  # kept one by one: all of them take hours
        figures = merged(reproduction([(experiment, experiment.measure(how))]))
        write_atomically(FIGURES, (strict_json(figures.to_json()) + "\n").encode())
        for name, chart in charts(figures.figures).items():
            picture = export(drawn(chart, name).on_sheet, scale=1)[".png"]
            write_atomically(ROOT / "docs" / "published" / f"{name}.png", picture)
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


def charts(figures: Sequence[Reproduced]) -> dict[str, Dots]:
    """Return the charts of what was run, by their names: how far from published, and how often."""
    ran = [each for each in figures if each.ours and each.quantity.published is not None]
    sides = {s: [e for e in ran if e.quantity.name == quantity(s, "validation")] for s in SIDES}
    return {"differences": differences(sides["batch norm"]), "successes": successes(sides)}


def differences(figures: Sequence[Reproduced]) -> Dots:
    """Return the chart of our accuracies less the published ones, with batch norm."""
    found = [each for each in figures if not _large_weights(each)]
    known = [each.difference for each in found if each.difference is not None]
    within = sum(abs(difference) <= NEAR for difference in known)
    return Dots(
        title=f"{within} of {len(found)} published figures within {NEAR} points of our median",
        x=Axis("validation accuracy with batch norm, ours − published (points)"),
        dots=tuple(
            ranged(each.experiment, "batch norm", _less(each), "batch norm") for each in found
        ),
        rule=Rule(0, "published"),
    )


def _less(each: Reproduced) -> list[float | None]:
    published = each.quantity.published
    return [None if v is None or published is None else v - published for v in each.ours]


def successes(sides: Mapping[Side, Sequence[Reproduced]]) -> Dots:
    """Return the chart of how many runs succeed from weights a hundred times too large."""
    settings = {
        (each.title, side): each  # rows that repeat another's setting have the same runs
        for side, figures in sides.items()
        for each in figures
        if _large_weights(each)
    }
    return Dots(
        title="From weights a hundred times too large: how many runs still reach 90%",
        x=Axis("runs that end at 90% or above on validation (%), with 95% interval"),
        dots=tuple(_rate(each, side) for (_, side), each in settings.items()),
    )


def _rate(each: Reproduced, side: Side) -> Dot:
    rate = each.success
    if rate is None:
        raise ValueError(f"{each.experiment} has no bar of success, or was not run")
    low, high = (100 * bound for bound in rate.interval)
    share = 100 * rate.successes / rate.runs
    return Dot(each.title.removesuffix(", 50,000 steps"), side, share, low, high, side)


def _large_weights(each: Reproduced) -> bool:
    """Whether weights start a hundred times too large: there single runs say nothing."""
    return each.title.startswith("std 5,")


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
