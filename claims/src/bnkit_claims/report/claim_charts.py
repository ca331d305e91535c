"""From the charts of a claim, which are plain records, to drawings in panels."""

from collections.abc import Iterable

from bnkit.report.charts import Chart, Group, Panel
from bnkit_claims.core import charts as records
from bnkit_claims.report.dot_charts import panels_of_dots
from bnkit_claims.report.heat_maps import panels_of_pictures, panels_of_surfaces
from bnkit_claims.report.line_charts import panels_of_lines

LINES = "Dashed: plain. Solid: batch norm (BN)."
DOTS = "Ring: plain. Filled: the others."


def drawn(figure: records.ChartRecord, name: str) -> Chart:
    """Return the drawings of a claim's chart; their names begin with `name`."""
    panels, caption, width = _panels(figure, name)
    return Chart(
        name=name,
        title=figure.title,
        caption=caption,
        groups=tuple(Group("", panels[n : n + 2]) for n in range(0, len(panels), 2)),
        width=width,
        room=130,
    )


def _panels(
    figure: records.ChartRecord, name: str
) -> tuple[tuple[Panel, ...], tuple[str, ...], int]:
    match figure:
        case records.Lines():
            return panels_of_lines(figure, name), (LINES,) if _has_plain(figure.lines) else (), 280
        case records.Dots():
            return panels_of_dots(figure, name), (DOTS,) if _has_plain(figure.dots) else (), 420
        case records.Surfaces():
            return panels_of_surfaces(figure, name), (), 240
        case records.Pictures():
            return panels_of_pictures(figure, name), (), 240


def _has_plain(marks: Iterable[records.Line | records.Dot]) -> bool:
    return any(mark.side == "plain" for mark in marks)
