"""The page: the template, filled with the tables, the charts, the style and the scripts."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import jinja2
import vl_convert

from bnkit.lab.summary import Comparison
from bnkit.report.figure import VEGA_LITE, Figure
from bnkit.report.tables import Tables


def page(comparison: Comparison, figures: Sequence[Figure]) -> str:
    """Return the report as one HTML page that needs no other file and no network."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    panels = [each for figure in figures for group in figure.groups for each in group.panels]
    return environment.from_string(_beside("report.html")).render(
        comparison=comparison,
        tables=Tables(comparison),
        figures={figure.name: figure for figure in figures},
        charts={panel.name: panel.on_page for panel in panels},
        style=_beside("report.css"),
        script=_beside("report.js"),
        library=_library(),
    )


def _beside(name: str) -> str:
    return files("bnkit.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed, their licences included, as one script."""
    return vl_convert.javascript_bundle(vl_version=VEGA_LITE)
