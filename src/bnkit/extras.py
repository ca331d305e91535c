"""What `pip install bnkit` leaves out, the line that installs it, and what others add."""

import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

# Of each extra of pyproject.toml the modules, and the distributions that they come with.
EXTRAS: dict[str, dict[str, str]] = {
    "cli": {"typer": "typer"},
    "compare": {
        "loky": "loky",
        "pooch": "pooch",
        "scipy": "scipy",
        "sklearn": "scikit-learn",
    },
    "report": {
        "altair": "altair",
        "jinja2": "jinja2",
        "markdown_it": "markdown-it-py",
        "vl_convert": "vl-convert-python",
    },
    "frames": {"pandas": "pandas"},
    "keras": {"keras": "keras"},
    "onnx": {"onnx": "onnx"},
    "dask": {"distributed": "distributed"},
    "ray": {"ray": "ray"},
    "slurm": {"submitit": "submitit"},
}


class MissingExtraError(ModuleNotFoundError):
    """What was called needs packages that are not installed; the message says how to get them."""


def require(extra: str, what: str) -> None:
    """Raise MissingExtraError, naming `what` needs it, where packages of an extra are missing.

    >>> require("report", "`write_report`")
    """
    missing = [name for module, name in EXTRAS[extra].items() if not _is_there(module)]
    if missing:
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        raise MissingExtraError(
            f"{what} needs {names}, which {'are' if len(missing) > 1 else 'is'} not installed: "
            f'pip install "bnkit[{extra}]"'
        )


def joined(group: str) -> dict[str, Any]:
    """Return what installed distributions add to bnkit under an entry point of this group.

    The groups are "bnkit.commands" (functions for the command line), "bnkit.rules" (of the doctor),
    "bnkit.networks" (of comparisons) and "bnkit.claims".

    >>> joined("bnkit.nothing")
    {}
    """
    return {entry.name: entry.load() for entry in entry_points(group=group)}


def _is_there(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None  # None forbids an import
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # an importer refuses it
        return False
