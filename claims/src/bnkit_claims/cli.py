"""`bnkit claims` and `bnkit reproduce`: claims and published experiments, measured here."""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from bnkit.cli.engines import EXECUTOR, EXECUTOR_OPTION, TRIAL_TIMEOUT, engine_at
from bnkit.cli.output import chatter_on_stderr, explained, messages, print_result, say
from bnkit.experiments.provenance import usable_cores
from bnkit.experiments.sweep import Interrupted
from bnkit.files import strict_json, write_atomically
from bnkit.names import one_beginning, unknown_name
from bnkit.options import showing
from bnkit.report import write_report
from bnkit.tables import text_table
from bnkit_claims.claims.all_claims import CLAIMS
from bnkit_claims.core.cases import Repetition
from bnkit_claims.core.checked_claims import ClaimsInterrupted, check_claims
from bnkit_claims.core.claim import claim_named
from bnkit_claims.published.all_experiments import EXPERIMENTS
from bnkit_claims.published.experiment import Measured, PublishedExperiment
from bnkit_claims.published.reproduction import reproduction
from bnkit_claims.report import write_claims

DATA = ("digits", "mnist", "fashion-mnist", "toy")

DataDir = Annotated[
    Path | None,
    typer.Option(help="folder of the MNIST files, else downloaded", envvar="BNKIT_DATA"),
]
Jobs = Annotated[
    int | None,
    typer.Option(help="processes, of one thread each", min=1, show_default="one a core"),
]
TrialTimeout = Annotated[float | None, typer.Option(help=TRIAL_TIMEOUT, show_default="no limit")]
OnCluster = Annotated[str | None, typer.Option("--executor", help=EXECUTOR)]
OfCluster = Annotated[list[str] | None, typer.Option("--executor-option", help=EXECUTOR_OPTION)]
Reports = Annotated[
    Path, typer.Option("--out", help="folder of the reports and of the results to resume from")
]
AllAsJson = Annotated[
    bool, typer.Option("--json", help="print all of it as JSON instead of the table")
]
Seeds = Annotated[int | None, typer.Option(help="runs of each", show_default="each one's own")]
ListThem = Annotated[bool, typer.Option("--list", help="list them with their sources; run nothing")]


def _options(out: str) -> list[inspect.Parameter]:
    """Return the options of both commands; `out` is the folder of the results by default."""
    options = {
        "data_dir": (DataDir, None),
        "seeds": (Seeds, None),
        "jobs": (Jobs, None),
        "trial_timeout": (TrialTimeout, None),
        "executor": (OnCluster, None),
        "executor_option": (OfCluster, None),
        "out": (Reports, Path(out)),
        "list_them": (ListThem, False),
        "as_json": (AllAsJson, False),
    }
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, (kind, default) in options.items()
    ]


@showing(_options("bnkit-claims"))
def claims(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="names of claims, or how they begin; by default all", metavar="CLAIM"),
    ] = None,
    data: Annotated[
        str,
        typer.Option(help="digits, mnist, fashion-mnist, or toy: tiny runs, to try it out"),
    ] = "digits",
    **typed: Any,
) -> None:
    """Which of the claims about batch norm hold?

    Measures each claim over seeds, paired with and without batch norm, and judges it by criteria
    that were written down before: holds, holds in part (where), does not hold, or not shown, where
    there are too few runs to tell. Writes a page with charts for each. All of them take about
    eight minutes on two cores; after an interruption, run the same command to resume.

    - `bnkit claims` measures all of them on scikit-learn's handwritten digits.
    - `bnkit claims learning-rates initialisation --data mnist`

    Exit codes: 0 done, 1 done but some could not be measured, 2 wrong use, 130 interrupted.
    """
    with explained():
        chosen = [claim_named(CLAIMS, name) for name in names] if names else list(CLAIMS)
        if data not in DATA:
            raise ValueError(unknown_name("data set", data, DATA))
        if typed["list_them"]:
            rows = [(c.name, c.statement, "; ".join(s.who for s in c.sources)) for c in chosen]
            plain = [{"name": c.name, "statement": c.statement} for c in chosen]
            _print_list(("name", "claim", "who says it"), rows, plain if typed["as_json"] else None)
            return
        try:
            with _repetition(typed) as how, chatter_on_stderr():
                checked = check_claims(chosen, data, how)
        except ClaimsInterrupted as interruption:
            raise _interrupted(interruption.checked, as_json=typed["as_json"]) from None
        print_result(checked, as_json=typed["as_json"])
        with messages.status("writing the pages"):
            try:
                path = write_claims(checked, how.out)
            except ChildProcessError as error:
                kept = "The results are kept: allow more memory, and run the same command again"
                raise ChildProcessError(f"{error}. {kept}") from error
        say(f"Report: {path}")
    if checked.failed:
        raise typer.Exit(1)


@showing(_options("bnkit-published"))
def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="the experiments to run, as --list names them", metavar="EXPERIMENT"),
    ] = None,
    **typed: Any,
) -> None:
    """Do the published experiments with batch norm give the published results here?

    Runs the exact published setting over seeds and puts the published results beside ours: median
    and range, the difference, and how many runs succeed. What needs ImageNet is listed with its
    results and what it would take. After an interruption, run the same command to resume.

    - `bnkit reproduce --list`
    - `bnkit reproduce udacity-2 udacity-4 --seeds 5`

    Exit codes: 0 done, 2 wrong use, 130 interrupted.
    """
    with explained():
        table = {experiment.name: experiment for experiment in EXPERIMENTS}
        chosen = [one_beginning(table, name, "experiment") for name in names or []]
        if typed["list_them"]:
            listed = chosen or EXPERIMENTS
            rows = [(e.name, e.title, e.source, e.needs and "not run") for e in listed]
            plain = [{"name": e.name, "title": e.title, "source": e.source} for e in listed]
            _print_list(
                ("name", "experiment", "source", ""), rows, plain if typed["as_json"] else None
            )
            return
        if not chosen:
            raise ValueError("no experiment is named, and all of them take hours: see --list")
        found: list[tuple[PublishedExperiment, Measured]] = []
        try:
            with _repetition(typed) as how, chatter_on_stderr():
                for experiment in chosen:
                    ours = experiment.measure(how)
                    found.append((experiment, ours))
                    _report(experiment, ours, how.out)
        except (Interrupted, KeyboardInterrupt):
            raise _interrupted(reproduction(found), as_json=typed["as_json"]) from None
        result = reproduction(found)
        write_atomically(how.out / "published.json", strict_json(result.to_json()).encode())
        print_result(result, as_json=typed["as_json"])
        say(f"Results: {how.out / 'published.json'}")


@contextmanager
def _repetition(typed: Mapping[str, Any]) -> Iterator[Repetition]:
    """Give how to measure, by the workers of --executor if it is given."""
    jobs, timeout = typed["jobs"], typed["trial_timeout"]
    if jobs and typed["executor"]:
        raise ValueError(
            f"--jobs {jobs} is for this machine's processes, and --executor has its own"
        )
    with engine_at(typed["executor"], typed["executor_option"], typed["out"]) as workers:
        yield Repetition(
            typed["out"],
            typed["data_dir"],
            typed["seeds"],
            jobs or usable_cores(),
            trial_timeout=timeout,
            executor=workers,
        )


def _report(experiment: PublishedExperiment, ours: Measured, out: Path) -> None:
    if ours.comparison is not None:
        with messages.status("writing the report"):
            try:
                path: object = write_report(ours.comparison, out / experiment.name)
            except ChildProcessError as error:  # the next experiment may take hours, and is run
                path = f"{error}. The results are kept: allow more memory, and run it again"
        say(f"{experiment.name}: {path}")


def _print_list(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    plain: Sequence[Mapping[str, str]] | None,
) -> None:
    """Print a table, or `plain` as JSON where it is given."""
    print(text_table(headers, rows) if plain is None else json.dumps(plain, indent=2))  # noqa: T201  the output


def _interrupted(finished: Any, *, as_json: bool) -> typer.Exit:
    """Print what had finished, and return the end of an interrupted command."""
    print_result(finished, as_json=as_json)
    say("Interrupted. Run the same command to resume.")
    return typer.Exit(130)
