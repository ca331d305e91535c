"""From the charts of a claim, which are plain records, to drawings in panels."""

from bnkit.report.charts import Chart, Group, Panel
from bnkit_claims.core.charts import ChartRecord, Dots, Lines, Pictures, Surfaces
from bnkit_claims.report.dot_charts import panels_of_dots
from bnkit_claims.report.heat_maps import panels_of_pictures, panels_of_surfaces
from bnkit_claims.report.line_charts import panels_of_lines


def drawn(record: ChartRecord, name: str) -> Chart:
    """Return the drawings of a claim's chart; their names begin with `name`."""
    panels, caption, width = _panels(record, name)
    return Chart(
        name=name,
        title=record.title,
        caption=(caption,) if caption else (),
        groups=tuple(Group("", panels[n : n + 2]) for n in range(0, len(panels), 2)),
        width=width,
        room=130,
    )


def _panels(record: ChartRecord, name: str) -> tuple[tuple[Panel, ...], str, int]:
    match record:
        case Lines():
            plain = any(line.side == "plain" for line in record.lines)
            caption = "Dashed: plain. Solid: batch norm (BN)." if plain else ""
            return panels_of_lines(record, name), caption, 280
        case Dots():
            plain = any(dot.side == "plain" for dot in record.dots)
            caption = "Ring: plain. Filled: the others." if plain else ""
            return panels_of_dots(record, name), caption, 420
        case Surfaces():
            return panels_of_surfaces(record, name), "", 240
        case Pictures():
            return panels_of_pictures(record, name), "", 240
