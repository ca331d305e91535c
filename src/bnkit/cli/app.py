"""`app`: the commands under one name; `main`: the program, which ends well when interrupted."""

import signal

import typer

from bnkit.cli.comparison import compare
from bnkit.cli.doctor import doctor
from bnkit.cli.explaining import explain
from bnkit.cli.extensions import add_extensions
from bnkit.cli.performance import bench, warmup
from bnkit.cli.surgery import add, convert, fold, insert, remove, standardize

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
