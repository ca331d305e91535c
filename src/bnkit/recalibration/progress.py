"""A bar over mini-batches, on stderr, once they have taken two seconds."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 2.0  # seconds


def counted(
    items: Iterable[T], what: str, *, total: int | None, begun: float, shown: bool
) -> Iterator[T]:
    """Yield `items`, and show how far they are once two seconds have passed since `begun`.

    `total` is None where nobody knows it, `begun` is of time.monotonic.

    >>> list(counted([1, 2], "numbers", total=2, begun=time.monotonic(), shown=True))
    [1, 2]
    """
    if not shown:
        yield from items
        return
    with ExitStack() as stack:
        show = None
        for done, item in enumerate(items):
            if show is None and time.monotonic() - begun > PATIENCE:
                show = stack.enter_context(_bar(what, total))
            if show is not None:
                show(done)
            yield item


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
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
        task = bars.add_task(what, total=total)
        yield lambda done: bars.update(task, completed=done)
