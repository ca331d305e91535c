"""The rows of a chart of dots: names in lines, heights, and the place of each dot in its row."""

from collections import Counter
from collections.abc import Sequence
from textwrap import wrap

from bnkit_claims.core.figures import Dot

WIDTH = 20  # characters of a row's name in a line, which leave room for its dots on a phone
LINE = 12  # pixels for a line of a row's name
ROOM = 15  # pixels for a dot with its name
BETWEEN = 14  # pixels more for a row


class Rows:
    """The rows that dots lie in.

    A name begins at the middle of its row and goes down, as Vega draws it: so all are of as many
    lines, the shorter ones between empty lines, and `offset` pixels higher.
    """

    def __init__(self, dots: Sequence[Dot]) -> None:
        lines = {dot.row: wrap(dot.row, WIDTH) for dot in dots}
        self.lines = max(map(len, lines.values()), default=1)
        self.names = {row: "\n".join(self._padded(text)) for row, text in lines.items()}
        self.dots = max(Counter(dot.row for dot in dots).values(), default=1)
        self.offset = -LINE * (self.lines - 1) / 2

    def _padded(self, text: list[str]) -> list[str]:
        above = (self.lines - len(text)) // 2
        return [*[" "] * above, *text, *[" "] * (self.lines - len(text) - above)]

    @property
    def height(self) -> int:
        """The height of all rows, in pixels.

        >>> Rows([Dot("relu", "plain", 1.0), Dot("relu", "batch norm", 2.0)]).height
        44
        """
        row = max(ROOM * self.dots + BETWEEN, LINE * (self.lines + 1))
        return max(row * len(self.names), 2 * ROOM + BETWEEN)


def places(dots: Sequence[Dot]) -> list[int]:
    """Return for each dot which of its row it is.

    >>> places([Dot("relu", "plain", 1.0), Dot("tanh", "plain", 3.0), Dot("relu", "BN", 2.0)])
    [0, 0, 1]
    """
    seen: Counter[str] = Counter()
    found = []
    for dot in dots:
        found.append(seen[dot.row])
        seen[dot.row] += 1
    return found
