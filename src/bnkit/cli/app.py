"""`app`: the commands under one name; `main`: the program, which ends well when interrupted."""

import platform
import signal
import sys
import warnings
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bnkit.cli.comparison import compare
from bnkit.cli.doctor import doctor
from bnkit.cli.explaining import explain
from bnkit.cli.output import refuse
from bnkit.cli.performance import bench, warmup
from bnkit.cli.surgery import add, convert, fold, insert, recalibrate, remove, standardize
from bnkit.experiments.provenance import versions

# Commands of a distribution of ours that may not be installed, and its name.
DISTRIBUTIONS = {"claims": "bnkit-claims", "reproduce": "bnkit-claims"}
LOOK: Any = {
    "rich_markup_mode": "markdown",
    "pretty_exceptions_enable": False,
}


class Extended(TyperGroup):
    """The commands of bnkit, and those of installed distributions, which are loaded when used.

    Where a distribution of ours is not installed, its commands say how to install it.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, those of other distributions last."""
        return [*super().list_commands(ctx), *sorted(_extensions())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of this name, or None."""
        if cmd_name in _extensions():
            function = _extensions()[cmd_name].load()
            return _command(cmd_name, function, rich_help_panel=OTHERS)
        if cmd_name in DISTRIBUTIONS:
            return _missing(cmd_name)
        return super().get_command(ctx, cmd_name) or self._begun(ctx, cmd_name)

    def _begun(self, ctx: Any, typed: str) -> Any:
        """Return the only command whose name begins so, or None."""
        names = {*self.list_commands(ctx), *DISTRIBUTIONS}
        begun = sorted(name for name in names if typed and name.startswith(typed))
        if len(begun) > 1 and not ctx.resilient_parsing:  # as it is in completion
            ctx.fail(f"'{typed}' may be {', '.join(begun[:-1])} or {begun[-1]}: type more of it.")
        return self.get_command(ctx, begun[0]) if len(begun) == 1 else None


def _extensions() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group="bnkit.commands")}


def _command(name: str, function: Any, **more: Any) -> Any:
    alone = typer.Typer(add_completion=False, **LOOK)
    alone.command(name, **more)(function)
    return typer.main.get_command(alone)


def _missing(name: str) -> Any:
    anything = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    def missing() -> None:
        refuse(
            f"`bnkit {name}` comes with {DISTRIBUTIONS[name]}, which is not installed: "
            f"pip install {DISTRIBUTIONS[name]}, or in a checkout of bnkit "
            f"pip install -c constraints.txt -e . -e ./claims"
        )

    return _command(name, missing, context_settings=anything)


app = typer.Typer(cls=Extended, no_args_is_help=True, **LOOK)


def _print_versions(asked: bool) -> None:
    if asked:
        numbers = {**versions(), "Python": platform.python_version()}
        print(", ".join(f"{name} {number}" for name, number in numbers.items()))  # noqa: T201  the output
        raise typer.Exit


@app.callback()
def bnkit(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="print the versions and stop",
            callback=_print_versions,
            is_eager=True,
            show_default=False,
        ),
    ] = False,
    _traceback: Annotated[
        bool,
        typer.Option(
            "--traceback",
            help="show where an error was raised; it may stand anywhere",
            show_default=False,
        ),
    ] = False,
) -> None:
    """Batch normalization for PyTorch: add it, prove that it helps, keep it healthy, ship it.

    Names of commands may be shortened to how they alone begin.
    """


OTHERS = "What is said of it"
PANELS = {
    "Would it help?": (compare,),
    "Change a network": (add, insert, fold, convert, remove, standardize, recalibrate),
    "Keep it healthy": (doctor, explain),
    "Speed": (bench, warmup),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def main() -> None:
    """Run the command line; SIGTERM ends it as Ctrl-C does."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of the user's packages; python -W shows them
    if "--traceback" in sys.argv[1:]:  # it is an option of all commands
        sys.argv = [sys.argv[0], "--traceback", *(a for a in sys.argv[1:] if a != "--traceback")]
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is in the background of a script
            signal.signal(number, _interrupt_once)
    app()


def _interrupt_once(_number: int, _frame: object) -> None:
    # What comes after the first Ctrl-C could only interrupt the clearing up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
