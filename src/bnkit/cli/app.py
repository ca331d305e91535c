"""`app`: the commands under one name; `main`: the program, which ends well when interrupted."""

import signal
from importlib.metadata import entry_points

import typer

from bnkit.cli.comparison import compare
from bnkit.cli.doctor import doctor
from bnkit.cli.explaining import explain
from bnkit.cli.output import refuse
from bnkit.cli.performance import bench, warmup
from bnkit.cli.surgery import add, convert, fold, insert, remove, standardize

# Commands of a distribution of ours that may not be installed, and its name.
DISTRIBUTIONS = {"claims": "bnkit-claims", "reproduce": "bnkit-claims"}


def add_extensions(app: typer.Typer) -> None:
    """Add the commands of installed distributions to `app`.

    Where one of ours is not installed, its commands say how to install it.
    """
    found = {entry.name: entry for entry in entry_points(group="bnkit.commands")}
    for name, entry in sorted(found.items()):
        app.command(name)(entry.load())
    for name in sorted(DISTRIBUTIONS.keys() - found.keys()):
        _add_missing(app, name)


def _add_missing(app: typer.Typer, name: str) -> None:
    anything = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    def missing() -> None:
        refuse(
            f"`bnkit {name}` comes with {DISTRIBUTIONS[name]}, which is not installed: "
            f"pip install {DISTRIBUTIONS[name]}, or in a checkout of bnkit "
            f"pip install -c constraints.txt -e . -e ./claims"
        )

    app.command(name, hidden=True, context_settings=anything)(missing)


app = typer.Typer(
    help="Batch normalization for PyTorch: add it, prove that it helps, take it out again.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    compare,
    add,
    insert,
    fold,
    convert,
    remove,
    standardize,
    doctor,
    explain,
    bench,
    warmup,
):
    app.command()(command)
add_extensions(app)


def main() -> None:
    """Run the command line; SIGTERM ends it as Ctrl-C does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is in the background of a script
            signal.signal(number, _interrupt_once)
    app()


def _interrupt_once(_number: int, _frame: object) -> None:
    # What comes after the first Ctrl-C could only interrupt the clearing up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
