"""Writing: everything is drawn first, then each file is put in its place whole."""

from pathlib import Path
from typing import Any

from bnkit.experiments.summary import Comparison
from bnkit.files import strict_json, write_atomically


def write_report(comparison: Comparison, folder: str | Path) -> Path:
    """Write the report of a comparison into `folder` and return the path of its page.

    `report.html` opens offline; `charts/` holds each chart as PNG and SVG; `results.json` holds
    all numbers, null where there is none. No file is ever half-written, and where drawing fails
    an older report stays as it was.

    Raises ValueError for a comparison without trials.

    >>> import tempfile
    >>> from bnkit.experiments.results import TrialResult
    >>> trial = TrialResult("a1", "plain", 0.1, "relu", 0, "not run", "interrupted")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(Comparison({}, {}, 0.9, "bnkit compare", (trial,)), folder).name
    'report.html'
    """
    if not comparison.trials:
        raise ValueError("`comparison` holds no trials, so there is nothing to report: run some")
    from bnkit.report.figures import figures  # noqa: PLC0415  altair takes a second to import
    from bnkit.report.page import page  # noqa: PLC0415  as does what it needs

    folder = Path(folder)
    drawn = figures(comparison)
    files = {
        f"charts/{figure.name}{kind}": data
        for figure in drawn
        for kind, data in export(figure.on_sheet).items()
    }
    files["results.json"] = strict_json(comparison.to_json()).encode()
    files["report.html"] = page(comparison, drawn).encode()
    for name, data in files.items():  # the page comes last: it links to all others
        write_atomically(folder / name, data)
    return folder / "report.html"


def export(specification: dict[str, Any], *, scale: int = 2) -> dict[str, bytes]:
    """Return a Vega-Lite specification drawn as SVG and, `scale` pixels a point, as PNG."""
    import vl_convert  # noqa: PLC0415  50 megabytes, needed only here

    from bnkit.report.figure import VEGA_LITE  # noqa: PLC0415  as above

    svg = vl_convert.vegalite_to_svg(specification, vl_version=VEGA_LITE)
    return {".svg": svg.encode(), ".png": vl_convert.svg_to_png(svg, scale=scale)}
