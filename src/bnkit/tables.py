"""Tables and lists for people: one look for all that bnkit prints."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from importlib import import_module
from io import StringIO
from typing import Any

from bnkit.extras import require

# What draws a table instead of text, while a result is shown in a notebook: headers, rows -> text.
drawn_by: ContextVar[Callable[[list[str], list[list[str]]], str] | None] = ContextVar(
    "drawn_by", default=None
)


def text_table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, width: int = 100
) -> str:
    """Return a table in plain text, wrapped between words to `width` characters where that can be.

    >>> print(text_table(["layer", "features"], [["fc1", 100]]))
     layer   features
    ──────────────────
     fc1     100
    """
    lines = [[str(cell) for cell in line] for line in (headers, *rows)]
    if draw := drawn_by.get():
        return draw(lines[0], lines[1:])
    from rich import box  # noqa: PLC0415  a tenth of a second, needed only to print
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for column in zip(*lines, strict=True):
        longest = max(len(word) for cell in column for word in (cell.split() or [""]))
        table.add_column(Text(column[0]), min_width=longest)  # else names end in an ellipsis
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    page = StringIO()
    console = Console(
        file=page, width=width, color_system=None, legacy_windows=False, force_jupyter=False
    )
    console.print(table, crop=False)
    return "\n".join(line.rstrip() for line in page.getvalue().rstrip().splitlines())


def frame_of(rows: Iterable[Mapping[str, object]]) -> Any:
    """Return a pandas DataFrame of rows; MissingExtraError where pandas is not installed."""
    require("frames", "`to_frame`, which returns a pandas DataFrame,")
    return import_module("pandas").DataFrame(rows)


def several(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> several(1, "seed"), several(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def path_or_model(path: str) -> str:
    """Return the path of a layer as tables show it: that of the model itself is empty.

    >>> path_or_model("layer1.0.bn1"), path_or_model("")
    ('layer1.0.bn1', '(the model)')
    """
    return path or "(the model)"


def first_few(
    items: Sequence[str], *, separator: str = "; ", shown: int = 8, ending: str = ""
) -> str:
    """Return the first items in a row, and the number of the others with this `ending`.

    >>> first_few(["1", "4", "7"], separator=", ", shown=2)
    '1, 4 and 1 more'
    >>> first_few(["1: frozen", "4: frozen"], shown=1, ending=", which the plan lists")
    '1: frozen; and 1 more, which the plan lists'
    """
    more = len(items) - shown
    # Short items join by a comma alone, clauses keep their semicolon.
    rest = f"{separator.rstrip(', ')} and {more} more{ending}" if more > 0 else ""
    return f"{separator.join(items[:shown])}{rest}"
