"""`bnkit reproduce`: published experiments, run here, their figures beside ours."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bnkit.cli.arguments import AllAsJson, DataDir, Jobs, Reports
from bnkit.cli.output import chatter_on_stderr, explained, messages, print_result, say
from bnkit.experiments.comparison import Interrupted
from bnkit.experiments.environment import usable_cores
from bnkit.files import strict_json, write_atomically
from bnkit.names import one_of
from bnkit.report import write_report
from bnkit.tables import text_table
from bnkit_claims.published.experiment import Experiment, Found, Repetition
from bnkit_claims.published.reproduction import reproduce as run
from bnkit_claims.published.reproduction import reproduction
from bnkit_claims.published.table import EXPERIMENTS


def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="the experiments to run, as --list names them", metavar="EXPERIMENT"),
    ] = None,
    data_dir: DataDir = None,
    seeds: Annotated[
        int | None, typer.Option(help="runs of each", min=1, show_default="each one's own")
    ] = None,
    jobs: Jobs = None,
    out: Reports = Path("bnkit-published"),
    list_them: Annotated[
        bool, typer.Option("--list", help="list the experiments and their sources; run nothing")
    ] = False,
    as_json: AllAsJson = False,
) -> None:
    """Do the published experiments with batch norm come out here as they were published?

    Runs the exact published setting over seeds and puts the published figures beside ours: median
    and range, the difference, and how many runs succeed. What needs ImageNet is listed with its
    figures and what it would take. What was cut off goes on where it stopped.

    - `bnkit reproduce --list`
    - `bnkit reproduce udacity-2 udacity-4 --seeds 5`

    Exit codes: 0 done, 2 wrong use, 130 interrupted.
    """
    with explained():
        table = {experiment.name: experiment for experiment in EXPERIMENTS}
        chosen = [one_of(table, name, "experiment") for name in names or []]
        if list_them:
            print(_listed(chosen or EXPERIMENTS, as_json=as_json))  # noqa: T201  the output
            return
        if not chosen:
            raise ValueError("no experiment is named, and all of them take hours: see --list")
        how = Repetition(out, data_dir, seeds, jobs or usable_cores())
        found: list[tuple[Experiment, Found]] = []
        try:
            with chatter_on_stderr():
                for experiment, ours in run(chosen, how):
                    found.append((experiment, ours))
                    _report(experiment, ours, out)
        except (Interrupted, KeyboardInterrupt):
            print_result(reproduction(found), as_json=as_json)
            say("Interrupted. The same command goes on from here.")
            raise typer.Exit(130) from None
        result = reproduction(found)
        write_atomically(out / "published.json", strict_json(result.to_json()).encode())
        print_result(result, as_json=as_json)
        say(f"Figures: {out / 'published.json'}")


def _report(experiment: Experiment, ours: Found, out: Path) -> None:
    if ours.comparison is not None:
        with messages.status("writing the report"):
            path = write_report(ours.comparison, out / experiment.name)
        say(f"{experiment.name}: {path}")


def _listed(chosen: Sequence[Experiment], *, as_json: bool) -> str:
    if as_json:
        plain = [{"name": e.name, "title": e.title, "source": e.source} for e in chosen]
        return json.dumps(plain, indent=2)
    rows = [(e.name, e.title, e.source, e.needs and "not run") for e in chosen]
    return text_table(("name", "experiment", "source", ""), rows)
