"""Lines with a band around them: the median and the range of several runs."""

from collections.abc import Sequence
from statistics import median

from bnkit.experiments.results import Side
from bnkit_claims.core.figures import Line


def band(
    name: str,
    x: Sequence[float],
    runs: Sequence[Sequence[float | None]],
    *,
    side: Side | None = None,
    panel: str = "",
    scale: float = 1,
) -> Line:
    """Return the line through the median of the runs at each x, with their range as its band.

    Every run has one value for each x, or fewer if it ended early; None and what is missing leave
    the others to speak. `scale` multiplies the values, as 100 for percent.

    >>> line = band("plain", [1, 2], [[0.2, 0.5], [0.3, None], [0.7]], scale=10)
    >>> line.y, line.low, line.high
    ((3.0, 5.0), (2.0, 5.0), (7.0, 5.0))
    """
    columns = [
        [scale * run[i] for run in runs if i < len(run) and run[i] is not None]  # type: ignore[operator]  # not None
        for i in range(len(x))
    ]
    return Line(
        name=name,
        x=tuple(x),
        y=tuple(median(values) if values else None for values in columns),
        side=side,
        low=tuple(min(values, default=None) for values in columns),
        high=tuple(max(values, default=None) for values in columns),
        panel=panel,
    )
