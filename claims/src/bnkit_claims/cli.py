"""`bnkit claims`: what is said of batch norm, measured on this machine, with a verdict for each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bnkit.cli.arguments import AllAsJson, DataDir, Jobs, Reports
from bnkit.cli.output import chatter_on_stderr, explained, messages, print_result, say
from bnkit.names import unknown_name
from bnkit.tables import text_table
from bnkit_claims.claims.table import CLAIMS
from bnkit_claims.core.checking import Interrupted, check_claims
from bnkit_claims.core.claim import Claim, claim_named
from bnkit_claims.report import write_claims

DATA = ("digits", "mnist", "fashion-mnist", "toy")


def claims(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="names of claims, or how they begin; all if none is given", metavar="CLAIM"
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(help="digits, mnist, fashion-mnist, or toy: tiny runs, to try it out"),
    ] = "digits",
    data_dir: DataDir = None,
    seeds: Annotated[
        int | None, typer.Option(help="runs of each setting", show_default="each claim's own")
    ] = None,
    jobs: Jobs = None,
    out: Reports = Path("bnkit-claims"),
    list_them: Annotated[
        bool, typer.Option("--list", help="list the claims and who makes them; measure nothing")
    ] = False,
    as_json: AllAsJson = False,
) -> None:
    """What is said of batch norm: which of it holds?

    Measures each claim over seeds, paired with and without batch norm, and judges it by criteria
    that were written down before: holds, holds in part (where), does not hold, or not shown, where
    the runs are too few to tell. Writes a page for each with its charts. All of them take about
    eight minutes on two cores; what was cut off goes on where it stopped.

    - `bnkit claims` is all of them on scikit-learn's handwritten digits.
    - `bnkit claims learning-rates initialisation --data mnist`

    Exit codes: 0 done, 1 done but some could not be measured, 2 wrong use, 130 interrupted.
    """
    with explained():
        chosen = [claim_named(CLAIMS, name) for name in names] if names else list(CLAIMS)
        if data not in DATA:
            raise ValueError(unknown_name("data set", data, DATA))
        if list_them:
            print(_listed(chosen, as_json=as_json))  # noqa: T201  the output
            return
        try:
            with chatter_on_stderr():
                folder = None if data_dir is None else str(data_dir.absolute())
                checked = check_claims(chosen, data, out=out, folder=folder, seeds=seeds, jobs=jobs)
        except Interrupted as interruption:
            print_result(interruption.checked, as_json=as_json)
            say("Interrupted. The same command goes on from here.")
            raise typer.Exit(130) from None
        print_result(checked, as_json=as_json)
        with messages.status("writing the pages"):
            path = write_claims(checked, out)
        say(f"Report: {path}")
    if checked.failed:
        raise typer.Exit(1)


def _listed(chosen: Sequence[Claim[Any]], *, as_json: bool) -> str:
    if as_json:
        return json.dumps([{"name": c.name, "statement": c.statement} for c in chosen], indent=2)
    rows = [(c.name, c.statement, "; ".join(s.who for s in c.sources)) for c in chosen]
    return text_table(("name", "claim", "who says it"), rows)
