"""Tables for people: one look for all that bnkit prints."""

from collections.abc import Iterable, Sequence
from io import StringIO


def text_table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], *, width: int = 100
) -> str:
    """Return a table in plain text, wrapped to `width` characters, without a trailing newline.

    >>> print(text_table(["layer", "features"], [["fc1", 100]]))
     layer   features
    ──────────────────
     fc1     100
    """
    from rich import box  # noqa: PLC0415  a tenth of a second, needed only to print
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*headers, box=box.SIMPLE_HEAD, show_edge=False)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    page = StringIO()
    Console(file=page, width=width, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().rstrip().splitlines())
