"""Charts as plain records: what they show, and nothing on how it is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from bnkit.experiments.results import Side
from bnkit.experiments.statistics import PairedDifference
from bnkit_claims.core.restoring import restored

Values = tuple[float | None, ...]


@dataclass(frozen=True)
class Axis:
    """What stands along an axis: `label` with its unit, and whether it is logarithmic."""

    label: str
    logarithmic: bool = False


@dataclass(frozen=True)
class Rule:
    """A line across the chart at `value`, such as a target or equality, with its label."""

    value: float
    label: str


@dataclass(frozen=True)
class Line:
    """One line through (x, y), labelled at its end; `low` and `high` bound a band around it.

    `side` gives it the colour of that side; lines of a `panel` are drawn together. None in `y` is
    a gap.
    """

    name: str
    x: Values
    y: Values
    side: Side | None = None
    low: Values = ()
    high: Values = ()
    panel: str = ""


@dataclass(frozen=True)
class Lines:
    """Curves, in one panel or side by side in several that share both axes."""

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    rule: Rule | None = None
    kind: Literal["lines"] = "lines"


@dataclass(frozen=True)
class Dot:
    """One measured value in the row `row`, with the ends of its interval or range."""

    row: str
    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    side: Side | None = None


@dataclass(frozen=True)
class Dots:
    """Values with their intervals, one row for each thing that was measured."""

    title: str
    x: Axis
    dots: tuple[Dot, ...]
    rule: Rule | None = None
    kind: Literal["dots"] = "dots"


@dataclass(frozen=True)
class Surface:
    """The values of a function over two parameters: `values[i][j]` belongs to y[i] and x[j]."""

    panel: str
    x: Values
    y: Values
    values: tuple[Values, ...]


@dataclass(frozen=True)
class Surfaces:
    """Contours, side by side."""

    title: str
    x: Axis
    y: Axis
    value: Axis
    surfaces: tuple[Surface, ...]
    kind: Literal["surfaces"] = "surfaces"


@dataclass(frozen=True)
class Picture:
    """A grey image, `values[row][column]` from 0 (paper) to 1 (ink), under its name."""

    panel: str
    values: tuple[Values, ...]


@dataclass(frozen=True)
class Pictures:
    """Images to look at, such as samples of a generative network."""

    title: str
    pictures: tuple[Picture, ...]
    kind: Literal["pictures"] = "pictures"


ChartRecord = Lines | Dots | Surfaces | Pictures

_KINDS: dict[str, type[ChartRecord]] = {
    "lines": Lines,
    "dots": Dots,
    "surfaces": Surfaces,
    "pictures": Pictures,
}


def chart_from_json(fields: Mapping[str, Any]) -> ChartRecord:
    """Return the chart whose fields `dataclasses.asdict` wrote down.

    >>> from dataclasses import asdict
    >>> dots = Dots("two seeds", Axis("accuracy (%)"), (Dot("0", "plain", 90.0, side="plain"),))
    >>> chart_from_json(asdict(dots)) == dots
    True
    """
    return restored(_KINDS[fields["kind"]], fields)


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


def ranged(row: str, name: str, values: Sequence[float | None], side: Side | None = None) -> Dot:
    """Return the median of the values that are not None, with their range.

    >>> ranged("tanh", "plain", [3.0, None, 1.0, 2.0]).high
    3.0
    """
    known = sorted(value for value in values if value is not None)
    if not known:
        return Dot(row, name, None, side=side)
    return Dot(row, name, known[len(known) // 2], known[0], known[-1], side)


def in_points(row: str, difference: PairedDifference, name: str = "") -> Dot:
    """Return the mean difference in percentage points with its interval, to be drawn.

    >>> from bnkit.experiments.statistics import paired_difference
    >>> dot = in_points("tanh", paired_difference([(0.5, 0.75), (0.5, 0.75), (0.25, 0.5)]))
    >>> dot.value, dot.low, dot.high
    (25.0, 25.0, 25.0)
    """
    found = difference.times(100)
    return Dot(row, name or row, found.difference, found.low, found.high)


def accuracy_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x: Axis = Axis("training steps", logarithmic=True),
    rule: tuple[float, str] | None = None,
) -> Lines:
    """Return the chart of held-out accuracies in percent along training.

    `rule` is an accuracy in [0, 1] to compare with, and its label.

    >>> accuracy_chart("one run", [Line("plain", (10,), (92.0,))], rule=(0.9, "target")).rule
    Rule(value=90.0, label='target')
    """
    return Lines(
        title=title,
        x=x,
        y=Axis("held-out accuracy (%), median and range"),
        lines=tuple(lines),
        rule=rule and Rule(100 * rule[0], rule[1]),
    )
