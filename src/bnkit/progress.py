"""Progress bars: anything over two seconds shows how far it is."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from bnkit.notebooks import bar, in_notebook

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

PATIENCE = 2.0  # seconds


def counted(
    items: Iterable[T], what: str, *, total: int | None, begun: float, shown: bool
) -> Iterator[T]:
    """Yield `items`, and show how far they are once two seconds have passed since `begun`.

    `total` is None where it is unknown, `begun` is of time.monotonic.

    >>> list(counted([1, 2], "numbers", total=2, begun=time.monotonic(), shown=True))
    [1, 2]
    """
    if not shown:
        yield from items
        return
    with ExitStack() as stack:
        count = None
        for done, item in enumerate(items):
            if count is None and time.monotonic() - begun > PATIENCE:
                count = stack.enter_context(counting(what, total, done=done))
            elif count is not None:
                count(item)
            yield item


class Count:
    """Counts one thing more as done at each call; `say` adds a note to the bar, "" for none."""

    def __init__(self, one_more: Callable[[object], object], say: Callable[[str], object]) -> None:
        self._one_more, self.say = one_more, say

    def __call__(self, done: object) -> None:
        self._one_more(done)


@contextmanager
def counting(what: str, total: int | None, *, done: int = 0, shown: bool = True) -> Iterator[Count]:
    """Show a bar for `total` things, on stderr or in a notebook; yield what counts one as done.

    >>> with counting("trials", 2, shown=False) as count:
    ...     count("the first")
    """
    if not shown:
        yield Count(id, str)  # which do nothing
        return
    if in_notebook():
        with bar(what, total, done) as (one_more, say):
            yield Count(one_more, say)
        return
    from rich.console import Console  # noqa: PLC0415  as below

    with progress_bars(console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=total, completed=done, note="")
        yield Count(lambda _: bars.advance(task), lambda note: bars.update(task, note=note))


def progress_bars(**options: Any) -> "Progress":
    """Return a context in which bars are shown, each with its note below.

    `options` are those of rich's Progress.
    """
    from rich.progress import (  # noqa: PLC0415  a tenth of a second, needed only to show
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text  # noqa: PLC0415  as above

    class Bars(Progress):
        def get_renderables(self) -> Iterator[Any]:
            yield from super().get_renderables()
            # In a column beside the bar it would leave no room for the others.
            for note in filter(None, (task.fields.get("note") for task in self.tasks)):
                yield Text(note, no_wrap=True, overflow="ellipsis")

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("to go"),
        **options,
    )
