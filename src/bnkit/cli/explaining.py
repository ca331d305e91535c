"""`bnkit explain`: what a rule of the doctor finds, how it measures, and how to fix it."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from bnkit.cli.arguments import AsJson
from bnkit.cli.output import explained, print_result
from bnkit.diagnosis.explanation import Explanation, explanation_of
from bnkit.diagnosis.rules.table import KINDS, RULES, Rule
from bnkit.extras import require
from bnkit.names import one_beginning
from bnkit.tables import text_table

_WIDTH = 88  # characters, beyond which lines of prose are hard to follow


def explain(
    rule: Annotated[
        str | None, typer.Argument(help="the rule, as `bnkit doctor` names it; all without it")
    ] = None,
    keras: Annotated[
        bool, typer.Option("--keras", help="the rules for Keras models", show_default=False)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What does a finding of `bnkit doctor` mean, and how is it fixed?

    Says of a rule what the trouble is, how it is measured and why the threshold lies where it
    lies, how severe it is, and how to fix it. Without a rule, lists all of them.

    - `bnkit explain` lists the rules.
    - `bnkit explain stale-statistics`
    - `bnkit explain --keras wrong-axis`

    Exit codes: 0 done, 2 there is no such rule.
    """
    with explained():
        if rule is None:
            print_result(_Overview(_of_keras() if keras else KINDS), as_json=as_json)
            return
        rules = [each for of_kind in _of_keras().values() for each in of_kind] if keras else RULES
        found = explanation_of(one_beginning({each.slug: each for each in rules}, rule, "rule"))
    if sys.stdout.isatty() and not as_json:
        _show(found)
    else:
        print_result(found, as_json=as_json)


@dataclass(frozen=True)
class _Overview:
    """All rules, a line each."""

    kinds: Mapping[str, tuple[Rule, ...]]

    def to_json(self) -> dict[str, Any]:
        return {
            "rules": [
                {"rule": rule.slug, "kind": kind, "summary": rule.summary}
                for kind, rules in self.kinds.items()
                for rule in rules
            ]
        }

    def __str__(self) -> str:
        table = text_table(["", "rule", "what it finds"], self._lines())
        return f"{table}\n\nbnkit explain RULE says more of each."

    def _lines(self) -> Iterator[tuple[str, str, str]]:
        for kind, rules in self.kinds.items():
            for index, rule in enumerate(rules):
                yield "" if index else kind, rule.slug, rule.summary


def _of_keras() -> Mapping[str, tuple[Rule, ...]]:
    """Return the rules for Keras models, whose import takes seconds."""
    require("keras", "`bnkit explain --keras`")
    from bnkit.cli.keras_models import RULES_BY_KIND  # noqa: PLC0415  for these only

    return RULES_BY_KIND


def _show(found: Explanation) -> None:
    """Print the page in the colours of the terminal; elsewhere it is the Markdown itself."""
    from rich.console import Console  # noqa: PLC0415  a tenth of a second, only to print
    from rich.markdown import Markdown  # noqa: PLC0415

    console = Console(emoji=False)
    page = Markdown(str(found), code_theme="ansi_dark", hyperlinks=False)
    console.print(page, width=min(console.width, _WIDTH))
