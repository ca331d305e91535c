"""Progress bars: anything over two seconds shows how far it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counting(
    what: str, total: int, *, done: int = 0, shown: bool = True
) -> Iterator[Callable[[object], None]]:
    """Show a bar for `total` things on stderr; give a function that counts one more as done.

    >>> with counting("trials", 2, shown=False) as count:
    ...     count("the first")
    """
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415  a tenth of a second, needed only to show
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("to go"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=total, completed=done)
        yield lambda _: bars.advance(task)
