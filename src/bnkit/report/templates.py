"""The templates of the pages, and the scripts that draw their charts."""

from functools import cache
from pathlib import Path

import jinja2
import vl_convert

from bnkit.report import words
from bnkit.report.figure import VEGA_LITE

FILTERS = {
    "counted": words.counted,
    "heading": words.heading,
    "listed": words.listed,
    "number": words.number,
    "percent": words.percent,
    "ratio": words.ratio,
    "several": words.several,
    "steps": words.steps_to_target,
}


def templates(*folders: Path) -> jinja2.Environment:
    """Return the templates of `folders` and of this one; all that they are given is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment


@cache
def library() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script, nine tenths of a megabyte."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
