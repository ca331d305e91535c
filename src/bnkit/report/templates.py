"""The templates of the pages, filled with text, charts and the style."""

from inspect import isfunction
from pathlib import Path
from typing import Any

import jinja2

from bnkit.experiments.criteria import capital
from bnkit.report import formatting
from bnkit.tables import several

FILTERS = {
    "capital": capital,
    "several": several,
    **{name: value for name, value in vars(formatting).items() if isfunction(value)},
}


def filled(template: str, *folders: Path, **values: Any) -> str:
    """Return a page: a template of `folders` or of this one, filled with the values, escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template(template).render(**values)
