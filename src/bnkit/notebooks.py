"""`Shown`: results as notebooks show them; `bar`: how far a long run is, in a notebook."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from typing import Any

from bnkit.tables import drawn_by

# Everything is a shade of the notebook's own colour, so it suits light and dark without a script.
STYLE = """
.bnkit { font: 0.9em/1.45 system-ui, sans-serif; max-width: 70rem; }
.bnkit p { margin: 0.5em 0; }
.bnkit .scroll { overflow: auto; max-height: 32rem; margin: 0.5em 0; }
.bnkit table { border-collapse: collapse; margin: 0; font-size: 1em; display: table; }
.bnkit thead th { position: sticky; top: 0; font-weight: 500; background: none; border: 0;
  border-bottom: 1px solid currentColor; }
.bnkit th, .bnkit td { text-align: left; vertical-align: top; padding: 0.3em 1em 0.3em 0.4em;
  color: inherit; font-variant-numeric: tabular-nums; max-width: 34rem; white-space: normal; }
.bnkit tbody tr { background: none; border-top: 1px solid
  color-mix(in srgb, currentColor 18%, transparent); }
.bnkit tbody th { font: 600 0.95em ui-monospace, monospace; white-space: nowrap; }
.bnkit .error th, .bnkit .warning th, .bnkit .info th { border-left: 0.3em solid #3a86c8; }
.bnkit .warning th { border-left-color: #b57a00; }
.bnkit .error th { border-left-color: #d2601a; }
"""
_MARK = re.compile("\0(\\d+)\0")


class Shown:
    r"""A result that prints as tables and sentences: notebooks show the same as HTML.

    The HTML needs no script, no other file and no network.

    >>> class Result(Shown):
    ...     def __str__(self) -> str:
    ...         from bnkit.tables import text_table
    ...
    ...         return text_table(["layer", "change"], [["0", "a < b"]]) + "\n\nOne change."
    >>> "<td>a &lt; b</td>" in Result()._repr_html_()
    True
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Let IPython find how to print it before the `__repr__` that dataclass writes."""
        super().__init_subclass__(**options)
        cls._repr_pretty_ = Shown._repr_pretty_  # type: ignore[method-assign]  # looked up in a class's own dict

    def _repr_html_(self) -> str:
        """Return what Jupyter, Colab and VS Code show."""
        drawn: list[str] = []

        def draw(headers: list[str], rows: list[list[str]]) -> str:
            drawn.append(_table(headers, rows))
            return f"\0{len(drawn) - 1}\0"

        token = drawn_by.set(draw)
        try:
            text = str(self)
        finally:
            drawn_by.reset(token)
        # re.split gives text, number of a table, text, …
        parts = [
            drawn[int(part)] if index % 2 else _prose(part)
            for index, part in enumerate(_MARK.split(text))
        ]
        return f'<style>{STYLE}</style><div class="bnkit">{"".join(parts)}</div>'

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """Print what IPython shows in a terminal."""
        printer.text(str(self))


@contextmanager
def bar(what: str, total: int | None, done: int) -> Iterator[Any]:
    """Show a bar in a Jupyter notebook; yield two functions, to count one more and to add a note.

    It needs no widgets. It is gone at the end.
    """
    page: Any = import_module("IPython.display")  # there in a notebook only

    counted, noted = done, ""

    def shown() -> Any:
        of = f"{counted} of {total}" if total else str(counted)
        share = f' value="{counted}" max="{total}"' if total else ""
        label = f"{escape(what)}: {of}"
        more = f" {escape(noted)}" if noted else ""
        return page.HTML(f'<progress aria-label="{label}"{share}></progress> {label}{more}')

    handle = page.display(shown(), display_id=True)

    def count(_: object) -> None:
        nonlocal counted
        counted += 1
        handle.update(shown())

    def say(note: str) -> None:
        nonlocal noted
        if note != noted:
            noted = note
            handle.update(shown())

    try:
        yield count, say
    finally:
        handle.update(page.HTML(""))


def in_notebook() -> bool:
    """Return whether this runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


def _table(headers: list[str], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in headers)
    body = "".join(map(_row, rows))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(headers[0])}">'
        f'<table class="result"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _row(cells: list[str]) -> str:
    first, *others = cells
    marked = f' class="{first}"' if first in ("error", "warning", "info") else ""
    rest = "".join(f"<td>{escape(cell)}</td>" for cell in others)
    return f'<tr{marked}><th scope="row">{escape(first)}</th>{rest}</tr>'


def _prose(text: str) -> str:
    paragraphs = [paragraph for paragraph in re.split(r"\n{2,}", text.strip("\n")) if paragraph]
    return "".join(f"<p>{escape(each).replace(chr(10), '<br>')}</p>" for each in paragraphs)
