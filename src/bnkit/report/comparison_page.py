"""`write_report`: the page of a comparison, its charts as files, and all its numbers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnkit.experiments.statistics import SuccessRate
from bnkit.experiments.summary import Comparison
from bnkit.extras import require
from bnkit.files import strict_json, write_atomically
from bnkit.report import formatting
from bnkit.report.chart_engine import written_whole
from bnkit.report.comparison_numbers import (
    METHODS,
    PAIRWISE,
    costs,
    key_numbers,
    missing_runs,
    two_modes,
)
from bnkit.report.selection import MOST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnkit.report.charts import Chart


def write_report(comparison: Comparison, folder: str | Path) -> Path:
    """Write the report of a comparison into `folder` and return the path of its page.

    `report.html` is one file that needs no other and opens offline; `summary.png` is its first
    screen; `charts/` holds each chart as PNG and SVG; `results.json` holds all numbers, null where
    there is none. No file is ever half-written, and where drawing fails an older report stays as it
    was.

    Raises ValueError for a comparison without trials, MissingExtraError without bnkit[report],
    ChildProcessError where memory is too short to draw: the charts are drawn in another process,
    which may die of that.

    >>> import tempfile
    >>> from bnkit.experiments.results import TrialResult
    >>> trial = TrialResult("a1", "plain", 0.1, "relu", 0, "not run", "interrupted")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(Comparison({}, {}, 0.9, "bnkit compare", (trial,)), folder).name
    'report.html'
    """
    if not comparison.trials:
        raise ValueError("`comparison` holds no trials, so there is nothing to report: run some")
    require("report", "the report of a comparison")
    path = Path(folder) / "report.html"
    with written_whole(path):
        files = _files(comparison)
    for name, data in files.items():  # the page comes last: it names all others
        write_atomically(path.parent / name, data)
    return path


def _files(comparison: Comparison) -> dict[str, bytes]:
    from bnkit.report.charts import export  # noqa: PLC0415  altair takes a second to import
    from bnkit.report.summary_picture import summary_picture  # noqa: PLC0415  as above

    drawn = charts(comparison)
    files = {
        f"charts/{chart.name}{kind}": data
        for chart in drawn
        for kind, data in export(chart.on_sheet).items()
    }
    summary = summary_picture(comparison, drawn[0], _subject(comparison))
    files["summary.png"] = export(summary)[".png"]
    files["results.json"] = strict_json(comparison.to_json()).encode()
    files["report.html"] = page(comparison, drawn).encode()
    return files


def charts(comparison: Comparison) -> "tuple[Chart, ...]":
    """Return the charts of the metric, of the loss, and of the steps to the target."""
    from bnkit.report.curve_charts import loss_chart, metric_chart  # noqa: PLC0415  as above
    from bnkit.report.step_charts import steps_chart  # noqa: PLC0415  as above

    return metric_chart(comparison), loss_chart(comparison), steps_chart(comparison)


def page(comparison: Comparison, charts: "Sequence[Chart]") -> str:
    """Return the report as one HTML page that needs no other file and no network."""
    from bnkit.report.templates import filled  # noqa: PLC0415  as above

    return filled(
        "report.html",
        comparison=comparison,
        verdict=comparison.verdict,
        cells={(cell.learning_rate, cell.activation): cell for cell in comparison.cells},
        sides=comparison.sides,
        classes={side: f"side-{n % 8 + 1}" for n, side in enumerate(comparison.sides)},
        named=any(map(formatting.heading, comparison.activations)),
        subject=_subject(comparison),
        target=_target(comparison),
        goal=comparison.goal,
        metric=comparison.metric,
        diverged=sum(trial.outcome == "diverged" for trial in comparison.trials),
        missing=missing_runs(comparison.unfinished),
        key_numbers=key_numbers(comparison),
        costs=costs(comparison),
        two_modes=two_modes(comparison),
        methods=METHODS,
        pairwise=PAIRWISE,
        most=MOST,
        unseen=_unseen(comparison.settings),
        few_seeds=_few_seeds(len(comparison.seeds)),
        charts={chart.name: chart for chart in charts},
    )


def _target(comparison: Comparison) -> str:
    known = math.isfinite(comparison.target)
    return comparison.metric.chosen(comparison.target) if known else "unknown"


def _subject(comparison: Comparison) -> str:
    named = (comparison.settings.get(name) for name in ("network", "data"))
    return " on ".join(formatting.listed(value) for value in named if value)


def _unseen(settings: Mapping[str, Any]) -> str:
    """Return what may decide results and is in no key, for functions of the user's own."""
    if settings.get("train"):
        read = "files" if settings.get("data") else "data and files"
        return f"{read} that train reads itself, and the versions of packages other than torch"
    if any(":" in str(settings.get(name, "")) for name in ("network", "data")):
        return (
            "what data gives after its first epoch, and the versions of packages other than torch"
        )
    return ""


def _few_seeds(seeds: int) -> str:
    low = SuccessRate(seeds, seeds).interval[0]
    return (
        f"{seeds}/{seeds} is not certainty: it leaves every success rate from {100 * low:.0f}% up "
        "possible (Wilson's 95% interval)."
    )
