"""The templates of the pages, filled with text, charts, the style and the scripts."""

from collections.abc import Iterable
from functools import cache
from inspect import isfunction
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

from bnkit.report import formatting
from bnkit.report.charts import VEGA_LITE, Panel
from bnkit.report.palette import PAGE

FILTERS = {name: value for name, value in vars(formatting).items() if isfunction(value)}


def filled(template: str, panels: Iterable[Panel], *folders: Path, **values: Any) -> str:
    """Return a page: a template of `folders` or of this one, filled with the values, escaped.

    It draws the panels in the elements whose ids are their names, and needs no other file.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    named = {panel.name: panel for panel in panels}
    return environment.get_template(template).render(
        panels=named,
        drawings={"look": PAGE.config, "charts": {n: p.on_page for n, p in named.items()}},
        library=library,  # for the pages with charts only
        **values,
    )


@cache
def library() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script, nine tenths of a megabyte."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
