"""Charts as plain records: what they show, without a word on how it is drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bnkit.experiments.results import Side
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


Figure = Lines | Dots | Surfaces | Pictures

_KINDS: dict[str, type[Figure]] = {
    "lines": Lines,
    "dots": Dots,
    "surfaces": Surfaces,
    "pictures": Pictures,
}


def figure_from_json(fields: Mapping[str, Any]) -> Figure:
    """Return the figure whose fields `dataclasses.asdict` wrote down.

    >>> from dataclasses import asdict
    >>> dots = Dots("two seeds", Axis("accuracy (%)"), (Dot("0", "plain", 90.0, side="plain"),))
    >>> figure_from_json(asdict(dots)) == dots
    True
    """
    return restored(_KINDS[fields["kind"]], fields)
