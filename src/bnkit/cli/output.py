"""What commands print: results on stdout, all else on stderr, errors in one sentence."""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn, Protocol

import typer
from rich.console import Console

from bnkit.extras import MissingExtraError
from bnkit.files import strict_json
from bnkit.progress import progress_bars

# Yields items, of which there are `total`, None where it is unknown, and counts them.
Counter = Callable[..., Iterator[Any]]

messages = Console(stderr=True, markup=False, highlight=False, emoji=False)


class Record(Protocol):
    """A result that prints as text, and is plain data for other programs."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""


def print_result(record: Record, *, as_json: bool) -> None:
    """Print a result on stdout, as text or as JSON that every reader accepts."""
    text = strict_json(record.to_json(), indent=2) if as_json else record
    print(text, flush=True)  # noqa: T201  the output


def say(sentence: str) -> None:
    """Print a message on stderr, apart from what is before it."""
    messages.print(f"\n{sentence}", soft_wrap=True)


def refuse(sentence: str, *, code: int = 2) -> NoReturn:
    """End the program with one sentence and an exit code."""
    messages.print(f"Error: {sentence}", soft_wrap=True)
    raise typer.Exit(code)


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors of wrong use, which explain themselves, into one line and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, OSError, MemoryError, MissingExtraError) as error:
        if "--traceback" in sys.argv:
            traceback.print_exception(error)
        refuse(str(error) or "memory is too short")


@contextmanager
def chatter_on_stderr() -> Iterator[None]:
    """Send what users' code prints to stderr, from other processes too: stdout is for results."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def working(what: str, *, auto_refresh: bool = True) -> Iterator[Counter]:
    """Show on stderr that the program works; yield what counts things as they are taken.

    Without `auto_refresh` the bar moves with the things only, and no thread disturbs their times.
    """
    bars = progress_bars(
        console=messages,
        transient=True,
        auto_refresh=auto_refresh,
        disable=not messages.is_terminal,  # into a file it would write empty lines
    )
    with bars:
        task = bars.add_task(what, total=None, note="")

        def counter(items: Iterable[Any], *, total: int | None) -> Iterator[Any]:
            bars.update(task, total=total, completed=0, refresh=True)
            for done, item in enumerate(items, start=1):
                yield item
                bars.update(task, completed=done, refresh=True)

        yield counter
