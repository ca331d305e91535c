"""`bnkit doctor`: what is wrong with the batch norms of a network, in a table, JSON or SARIF."""

import inspect
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, TypedDict, Unpack

import typer

from bnkit.checkpoints import Checkpoint as File
from bnkit.checkpoints import Document
from bnkit.cli.arguments import Checkpoint, Data, Example
from bnkit.cli.operation import KERAS_FILES, Operation
from bnkit.cli.output import chatter_on_stderr, explained, messages, print_result, say
from bnkit.diagnosis import Diagnosis, diagnose_export
from bnkit.diagnosis.finding import SEVERITIES, Severity
from bnkit.names import one_beginning
from bnkit.options import Default, with_options
from bnkit.references import import_reference
from bnkit.report.diagnosis_page import checked, write_diagnosis

EXPORTED = (".onnx", ".pt2")
FORMATS = {name: name for name in ("text", "json", "sarif", "github")}
_BARS: dict[str, Severity] = {severity: severity for severity in SEVERITIES}


class Wanted(TypedDict, total=False):
    """What comes out of `bnkit doctor`."""

    fail_on: Annotated[
        str,
        typer.Option(help="error, warning or info: from what on the exit code is 1"),
        Default("warning"),
    ]
    fix: Annotated[
        Path | None,
        typer.Option(help="write a checkpoint of the fixed network", metavar="FILE.safetensors"),
        Default(None),
    ]
    html: Annotated[
        Path | None,
        typer.Option(
            help="write a page with the findings and charts of all batch norms",
            metavar="FILE.html",
        ),
        Default(None),
    ]
    as_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="text, json, sarif (for code scanners) or github (the table, and annotations of "
            "a pull request)",
        ),
        Default("text"),
    ]
    key: Annotated[
        str | None,
        typer.Option(help="under which key of the --checkpoint the values are"),
        Default(None),
    ]
    as_json: Annotated[
        bool,
        typer.Option("--json", help="--format json", show_default=False),
        Default(False),
    ]
    as_sarif: Annotated[
        bool,
        typer.Option("--sarif", help="--format sarif", show_default=False),
        Default(False),
    ]


@with_options
def doctor(
    model: Annotated[
        str,
        typer.Argument(
            help="a function that returns the network, as package.module:build, a .keras file, or "
            "an exported program, as net.onnx or net.pt2"
        ),
    ],
    example: Example = None,
    data: Data = None,
    checkpoint: Checkpoint = None,
    skip: Annotated[
        str,
        typer.Option(help="rules to leave out, everywhere or in layers", metavar="RULE[:GLOB],…"),
    ] = "",
    **options: Unpack[Wanted],
) -> None:
    """What is wrong with the batch norms of this network, where, and how is it fixed?

    Looks at the network in the mode in which it is built; with --example or --data it is run too,
    in eval and in training mode, which shows more. Nothing is changed.

    - `bnkit doctor package.module:build --example 8,3,224,224`
    - `bnkit doctor package.module:build --data package.module:loaders --checkpoint trained.pt`
    - `bnkit doctor package.module:build --data package.module:loaders --html sick.html`
    - `bnkit doctor exported.onnx`

    `bnkit explain RULE` says more of a finding.

    Exit codes: 0 healthy, 1 findings of --fail-on or worse, 2 wrong use.
    """
    fix, html = options["fix"], options["html"]
    with explained():
        bar = one_beginning(_BARS, options["fail_on"], "fail-on")
        shown = _format(options)
        if Path(model).suffix in EXPORTED:
            _refuse_for_exported(example, data, checkpoint, options["key"], skip or None, fix, html)
            exported = diagnose_export(Path(model))
            _print(exported, shown, model)
            raise typer.Exit(1 if exported.at_least(bar) else 0)
    with Operation.begin(
        "looking at the batch norms", model, checkpoint, fix, options["key"]
    ) as operation:
        if html is not None:
            checked(html)
        found = operation.diagnosis(example, data, skip)
        fixed, documents = operation.network, tuple[Document, ...]()
        fixable = any(finding.automatic_fix for finding in found.at_least("warning"))
        if fix is not None and fixable:
            fixed, changes = found.fixed_with_plans(operation.network)
            documents = tuple(plan.to_json() for plan in changes)
            if documents:
                File(fix, fixed.state_dict(), documents).restore(operation.network)  # it loads
    _print(found, shown, model)
    if html is not None:
        with explained(), messages.status("drawing"), chatter_on_stderr():
            given = {"checkpoint": checkpoint, "data": data, "example": " ".join(example or [])}
            made = {name: str(value) for name, value in given.items() if value}
            command = shlex.join(["bnkit", *sys.argv[1:]])
            write_diagnosis(found, html, made={"command": command, "network": model, **made})
        say(f"Report: {html}")
    if fix is not None and not fixable:
        say(f"None of the warnings or errors can be fixed automatically; {fix} was not written.")
    elif fix is not None:
        with explained():
            say(operation.write(fixed, fix, *documents))
    if found.at_least(bar):
        raise typer.Exit(1)


def _format(options: Wanted) -> str:
    asked = one_beginning(FORMATS, options["as_format"], "format")
    short = {"json": options["as_json"], "sarif": options["as_sarif"]}
    formats = {name for name, given in short.items() if given} | {asked} - {"text"}
    if len(formats) > 1:
        both = " and ".join(f"--{name}" for name in sorted(formats))
        raise ValueError(f"{both} both ask for stdout: leave one out")
    return formats.pop() if formats else "text"


def _refuse_for_exported(*options: object) -> None:
    names = ("--example", "--data", "--checkpoint", "--key", "--skip", "--fix", "--html")
    given = [name for name, value in zip(names, options, strict=True) if value is not None]
    if given:
        raise ValueError(
            f"an exported program is read by one rule, and not run: leave out {', '.join(given)}"
        )


def _print(found: Diagnosis, shown: str, model: str) -> None:
    if shown != "sarif":
        print_result(found, as_json=shown == "json")
    if shown in ("sarif", "github"):
        file, line = _source_of(model)
        if shown == "sarif":
            text = json.dumps(found.to_sarif(file=file, line=line), indent=2)
        else:
            text = found.to_github(file=file, line=line)
        print(text, flush=True)  # noqa: T201  the output


def _source_of(model: str) -> tuple[str, int]:
    """Return the file and line where the network is made, "" for a file that is not known."""
    if Path(model).suffix in (*EXPORTED, *KERAS_FILES):
        return _here(Path(model)), 1
    try:
        function = inspect.unwrap(import_reference(model))
        file, line = inspect.getsourcefile(function), inspect.getsourcelines(function)[1]
    except (TypeError, OSError):  # without a source, such as functools.partial
        return "", 1
    return _here(Path(file)) if file else "", line


def _here(path: Path) -> str:
    """Return a path as scanners want it: from the current folder, which holds the project."""
    inside = path.resolve().is_relative_to(Path.cwd())
    return (path.resolve().relative_to(Path.cwd()) if inside else path).as_posix()
